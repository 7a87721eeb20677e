import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, accepts_cells
from dualform.studies.study import StudyContext


def piece() -> Piece:
    tensors = {
        # The file would sort them.
        "z": torch.tensor([[0.1, -torch.inf], [torch.nan, 5e-324]], dtype=torch.float64),
        "a/b": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
        "of nothing": torch.empty(0, 2),
    }
    return Piece("model ä/b, seed 1", "abc", tensors, {"seed": 1, "rates": {"ft": 0.1 + 0.2}, "none": None})


def test_a_piece_comes_back_from_bytes_bit_for_bit(tmp_path: Path) -> None:
    before = piece()
    path = tmp_path / "piece"
    path.write_bytes(before.to_bytes())

    after = Piece.from_file(str(path))

    assert (after.name, after.inputs, after.about) == (before.name, before.inputs, before.about)
    assert list(after.tensors) == list(before.tensors) == ["z", "a/b", "of nothing"]
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(after.tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_equal_pieces_are_equal_bytes() -> None:
    assert piece().to_bytes() == piece().to_bytes()


def test_a_piece_without_tensors_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "piece"
    path.write_bytes(Piece("choosing, seed 1", "abc", {}, {"score": 0.5}).to_bytes())

    after = Piece.from_file(str(path))

    assert (after.tensors, after.about) == ({}, {"score": 0.5})


def test_half_a_piece_is_refused(tmp_path: Path) -> None:
    whole = piece().to_bytes()
    path = tmp_path / "piece"
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(SafetensorError):
        Piece.from_file(str(path))


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"outcome": "{}"}, {"piece": "{"}, {"piece": "{}"}, {"piece": json.dumps({"order": ["not there"]})}],
)
def test_a_file_that_is_no_piece_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "piece"
    path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, metadata=metadata))

    # What `RunFolder` takes for damage, and runs again.
    with pytest.raises((SafetensorError, KeyError, TypeError, ValueError)):
        Piece.from_file(str(path))


def test_no_piece_store_keeps_nothing() -> None:
    store = NoPieceStore()
    store.put(piece())

    assert store.get(piece().name, "abc") is None


def test_the_old_name_of_the_store_works_with_a_warning() -> None:
    @accepts_cells
    def study(*, pieces: PieceStore | None = None) -> PieceStore | None:
        return pieces

    store = NoPieceStore()
    with pytest.warns(DeprecationWarning, match="the argument cells of study is now called pieces"):
        assert study(cells=store) is store  # type: ignore[call-arg]
    assert study(pieces=store) is store
    with pytest.warns(DeprecationWarning, match=r"StudyContext.cells is now called pieces"):
        assert StudyContext(store).cells is store
