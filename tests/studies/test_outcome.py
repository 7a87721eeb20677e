from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from dualform.result import Trial
from dualform.studies.outcome import NoCells, SeedOutcome


def outcome(seed: int = 3) -> SeedOutcome:
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
    return SeedOutcome(
        seed=seed,
        inputs="abc",
        rows=(7, 0, 31),
        n_tokens=88,
        log_probabilities={"zsl": answers, "icl": answers + 1},
        # A slice of something larger, as measures often are: not contiguous.
        measures={"sim_am": measure.transpose(1, 2), "control.random.sim_aou": measure[..., 0]},
        costs={"zsl": {"adapt_seconds": 0.1 + 0.2, "flops": 1e15}},
        rates={"ft": 1e-3},
        trials=(trial,),
    )


def test_an_outcome_comes_back_from_bytes_bit_for_bit(tmp_path: Path) -> None:
    before = outcome()
    path = tmp_path / "seed-3.safetensors"
    path.write_bytes(before.to_bytes())

    after = SeedOutcome.from_file(str(path))

    assert (after.seed, after.inputs, after.rows) == (before.seed, before.inputs, before.rows)
    assert after.n_tokens == before.n_tokens
    assert (after.costs, after.rates, after.trials) == (before.costs, before.rates, before.trials)
    # The order of learners is the order of tables and charts.
    assert list(after.log_probabilities) == list(before.log_probabilities)
    for mine, theirs in (
        (before.log_probabilities, after.log_probabilities),
        (before.measures, after.measures),
    ):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert theirs[name].dtype == torch.float64
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_half_an_outcome_is_refused(tmp_path: Path) -> None:
    whole = outcome().to_bytes()
    path = tmp_path / "seed-3.safetensors"
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(SafetensorError):
        SeedOutcome.from_file(str(path))


def test_no_cells_keep_nothing() -> None:
    cells = NoCells()
    cells.put(outcome())

    assert cells.get(3, "abc") is None
