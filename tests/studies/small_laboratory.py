"""Two studies shaped like those of the laboratory, whose seeds take no work."""

from collections.abc import Callable

import torch

from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.result import Claim, LabChart, LabCurve, LabRow, LabStudy, LabTable
from dualform.studies.pieces import Piece, PieceStore
from dualform.studies.seed_statistics import over_seeds

computed: list[str] = []
"""The pieces that were computed rather than read back, in order."""


def pieces(config: RegressionConfig) -> int:
    """One per seed."""
    return len(config.seeds)


def constructed(config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None]) -> LabStudy:
    """Its pieces have names of their own."""
    return _study("constructed", 1.0, config, store, advance)


def shift(config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None]) -> LabStudy:
    """Its numbers are ten times as large."""
    return _study("shift", 10.0, config, store, advance)


def _study(
    name: str, size: float, config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None]
) -> LabStudy:
    values = []
    for seed in config.seeds:
        # Only one of the two studies has its name in the names of its pieces.
        own = f"shift, seed {seed}" if name == "shift" else f"seed {seed}"
        piece = store.get(own, "the same")
        if piece is None:
            computed.append(f"{name} {seed}")
            piece = Piece(own, "the same", {"value": torch.tensor(size * seed, dtype=torch.float64)}, {"of": name})
            store.put(piece)
        assert piece.about["of"] == name
        assert piece.name == own
        values.append(float(piece.tensors["value"]))
        advance(1.0, own)
    found = over_seeds(values)
    return LabStudy(
        name=name,
        question="How large are seeds?",
        answer="As large as they are.",
        claims=[
            Claim(says="Seeds are numbers.", expected="above 0", found=found, holds=True),
            Claim(says="Seeds are nothing.", expected="0", found=found, holds=False, must_fail=True),
        ],
        charts=[LabChart(title="Twice", x="times", y="sum", curves=[LabCurve(name="seed", x=[1, 2], y=[found] * 2)])],
        tables=[LabTable(title="Once", columns=["sum", "none"], rows=[LabRow(name="seed", cells=[found, None])])],
    )
