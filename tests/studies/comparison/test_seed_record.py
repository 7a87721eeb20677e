from pathlib import Path

import torch

from dualform.result import Trial
from dualform.studies.comparison.seed_record import SeedRecord, piece_name
from dualform.studies.pieces import Piece


def record(seed: int = 3) -> SeedRecord:
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    answers[1, 1] = -torch.inf
    measure = torch.randn(5, 2, 4, generator=generator, dtype=torch.float64)
    measure[0, 1, 2] = torch.nan
    trial = Trial(
        learner="ft",
        seed=seed,
        learning_rate=1e30,
        validation_accuracy=None,
        validation_log_probability=None,
        first_loss=0.1,
        last_loss=None,
        status="diverged",
        chosen=False,
    )
    return SeedRecord(
        seed=seed,
        inputs="abc",
        rows=(7, 0, 31),
        n_tokens=88,
        log_probabilities={"zsl": answers, "icl": answers + 1},
        # A slice of something larger, as measures often are: not contiguous.
        measures={"sim_am": measure.transpose(1, 2), "control/random/sim_aou": measure[..., 0]},
        costs={"zsl": {"adapt_seconds": 0.1 + 0.2, "flops": 1e15}},
        control_answers={"untrained.icl": answers - 1},
        rates={"ft": 1e-3},
        trials=(trial,),
        control_seconds=1 / 3,
        notes=("Something to know.",),
    )


def assert_same(mine: SeedRecord, theirs: SeedRecord) -> None:
    for name in ("seed", "inputs", "rows", "n_tokens", "costs", "rates", "trials", "control_seconds", "notes"):
        assert getattr(mine, name) == getattr(theirs, name), name
    for group in ("log_probabilities", "measures", "control_answers"):
        ours, others = getattr(mine, group), getattr(theirs, group)
        # The order of learners is the order of tables and charts.
        assert list(ours) == list(others)
        for name, tensor in ours.items():
            assert others[name].dtype == torch.float64
            torch.testing.assert_close(others[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_a_record_is_restored_from_its_piece(tmp_path: Path) -> None:
    before = record()
    piece = before.to_piece()

    assert (piece.name, piece.inputs) == (piece_name(3), "abc") == ("seed 3", "abc")
    assert_same(before, SeedRecord.from_piece(piece))


def test_a_record_is_restored_from_a_file_bit_for_bit(tmp_path: Path) -> None:
    before = record()
    path = tmp_path / "seed-3.safetensors"
    path.write_bytes(before.to_piece().to_bytes())

    assert_same(before, SeedRecord.from_piece(Piece.from_file(str(path))))


def test_a_learner_and_a_measure_of_one_name_are_kept_apart() -> None:
    ones, zeros = torch.ones(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    before = SeedRecord(1, (), 0, {"random": ones}, {"random": zeros}, {}, {"random": ones + 1})

    assert_same(before, SeedRecord.from_piece(before.to_piece()))
