"""Finetuning repeated from weights moved by rounding, as a comparison runs and reports it."""

from functools import cache
from typing import Any

import pytest
import torch

from dualform.errors import TrainingError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import ZeroShot
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.similarity import sim_aou_raw
from dualform.result import Result
from dualform.studies.comparison.config import comparison_config
from dualform.studies.comparison.run import Comparison, compare
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.work import controlled_queries
from dualform.studies.experiment import Experiment
from tests.studies.small import MemoryStore, numbers, small_config, small_task
from tests.tiny import tiny_model, tiny_tokenizer

TAME, WILD = 1e-2, 30.0
CHANGES: dict[str, Any] = {
    "rounding": "report",
    "k": 16,
    "controls": ("random", "ft_order"),
    "control_limit": 5,
    "limit": 8,
}


@cache
def float32_lm() -> LanguageModel:
    return LanguageModel.wrap(tiny_model("gpt2"), tiny_tokenizer(), "tiny")


@cache
def run(rate: float) -> Comparison:
    return compare(small_config(rates=(rate,), **CHANGES), lm=float32_lm(), task=small_task())


def by_hand(rate: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Log-probabilities of both trainings on the queries that controls read, and differences of their losses."""
    experiment = Experiment.of(small_config(rates=(rate,), **CHANGES), float32_lm(), small_task())
    queries = [experiment.queries[i] for i in controlled_queries(experiment)]
    # As in a comparison: other products round otherwise, and that is what this is about.
    with experiment.lm.packed_products():
        models = [
            Finetuned(experiment.encoder.opening, rate, moved=moved).adapt(experiment.lm, experiment.draw(seed).encoded)
            for moved in (None, seed)
        ]
        plain, repeated = (answer_log_probabilities(model, experiment.lm, queries) for model in models)
    return plain, repeated, [abs(a - b) for a, b in zip(models[0].losses, models[1].losses, strict=True)]


def test_the_reported_differences_are_those_of_two_trainings_by_hand() -> None:
    rounding = run(WILD).result.precision["ft"]
    apart, flips, losses = [], [], []
    for seed in (1, 2):
        plain, repeated, differences = by_hand(WILD, seed)
        apart.append((plain - repeated).abs())
        flips.append((plain.argmax(dim=1) != repeated.argmax(dim=1)).double().mean())
        losses.append(differences)

    # Which queries share a row moves a log-probability by float32's rounding.
    assert rounding.log_probability.mean == pytest.approx(float(torch.stack(apart).mean()), rel=0.05, abs=1e-4)
    assert rounding.largest == {"1": pytest.approx(float(apart[0].max()), rel=0.05, abs=1e-4),
                             "2": pytest.approx(float(apart[1].max()), rel=0.05, abs=1e-4)}  # fmt: skip
    assert rounding.flips.mean == pytest.approx(float(torch.stack(flips).mean()))
    assert rounding.log_probability.n == rounding.flips.n == 2 * 5
    assert rounding.loss == pytest.approx(torch.tensor(losses).mean(dim=0).tolist())
    assert len(rounding.loss) == 16
    assert rounding.learning_rate == {"1": WILD, "2": WILD}


def test_a_high_rate_is_not_stable_and_changes_what_depends_on_it() -> None:
    result = run(WILD).result
    assert not result.precision["ft"].stable
    assert max(value or 0 for value in result.precision["ft"].largest.values()) > 0.01
    assert (result.similarity["sim_aou_raw"].rounding or 0) > 1e-5
    # What finetuning has no part in does not move.
    assert result.similarity["relaxation"].rounding is None
    assert result.similarity["sim_am_before"].rounding is None


def test_a_low_rate_is_stable_and_changes_only_last_digits() -> None:
    result = run(TAME).result
    rounding = result.precision["ft"]
    assert rounding.stable
    assert 0 < rounding.log_probability.mean < 1e-5  # type: ignore[operator] # it is there
    assert rounding.flips.mean == 0
    assert rounding.similarity["sim_aou_raw"].mean == pytest.approx(1, abs=1e-3)
    assert result.similarity["sim_aou_raw"].rounding == pytest.approx(0, abs=1e-3)


def test_a_measure_moves_as_far_as_the_same_measure_of_the_repeat_lies_from_it() -> None:
    comparison = run(WILD)
    differences = []
    for record in comparison.records:
        own = record.measures["sim_aou_raw"]
        repeated = record.measures["repeat/icl/sim_aou_raw"]
        read = ~repeated.isnan().all(dim=1)
        assert int(read.sum()) == 5
        differences.append((own.mean(dim=1) - repeated.mean(dim=1))[read])
    expected = abs(float(torch.cat(differences).mean()))
    moved = comparison.result.similarity["sim_aou_raw"].rounding
    assert moved == pytest.approx(expected)

    place = comparison.result.calibrated["sim_aou_raw"]
    assert place.rounding == pytest.approx(expected / (place.ceiling - place.floor))  # type: ignore[operator]


def test_the_repeats_updates_are_compared_at_the_probe() -> None:
    """SimAOU of finetuning and its repeat, from attention outputs read by hand."""
    config = small_config(rates=(WILD,), **{**CHANGES, "seeds": (1,)})
    experiment = Experiment.of(config, float32_lm(), small_task())
    encoded = experiment.draw(1).encoded
    indices, opening = controlled_queries(experiment), experiment.encoder.opening
    outputs = []
    with experiment.lm.packed_products():
        for learner in (ZeroShot(opening), *(Finetuned(opening, WILD, moved=moved) for moved in (None, 1))):
            model = learner.adapt(experiment.lm, encoded)  # type: ignore[attr-defined]
            trace = model.read_group(experiment.queries, indices, Recording(output=True)).trace
            assert trace is not None
            outputs.append(trace.output)
    expected = float(sim_aou_raw(*outputs).double().mean())
    per_seed = run(WILD).result.precision["ft"].similarity["sim_aou_raw"].per_seed["1"]
    assert per_seed == pytest.approx(expected, abs=1e-4)


def test_repeating_changes_no_other_number() -> None:
    with_it = run(WILD)
    without = compare(
        small_config(rates=(WILD,), **{**CHANGES, "rounding": "none"}), lm=float32_lm(), task=small_task()
    )
    assert without.result.precision == {}
    for repeated, other in zip(with_it.records, without.records, strict=True):
        for name, table in other.log_probabilities.items():
            assert torch.equal(repeated.log_probabilities[name], table)
        for name, values in other.measures.items():
            assert torch.equal(repeated.measures[name].nan_to_num(7.0), values.nan_to_num(7.0)), name


def test_the_model_is_as_before_and_a_second_run_gives_the_same() -> None:
    lm = LanguageModel.wrap(tiny_model("gpt2"), tiny_tokenizer(), "tiny")
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    again = compare(small_config(rates=(WILD,), **CHANGES), lm=lm, task=small_task())
    assert all(torch.equal(parameter, before[name]) for name, parameter in lm.model.named_parameters())
    assert numbers(again.result) == numbers(run(WILD).result)


def test_a_seed_that_was_kept_gives_the_same_numbers() -> None:
    kept = MemoryStore()
    settings = small_config(rates=(WILD,), **CHANGES)
    first = compare(settings, lm=float32_lm(), task=small_task(), pieces=kept)
    second = compare(settings, lm=float32_lm(), task=small_task(), pieces=kept)
    assert numbers(first.result) == numbers(second.result)
    (piece, *_) = kept.pieces.values()
    assert SeedRecord.from_piece(piece).repeats == first.records[0].repeats


def test_a_result_without_repeats_is_read() -> None:
    """As files were written before there were any."""
    fields = run(TAME).result.model_dump(mode="json", by_alias=True)
    del fields["precision"]
    for record in (*fields["similarity"].values(), *fields["calibrated"].values()):
        del record["rounding"]
    for trial in fields["trials"]:
        del trial["rounding"], trial["rounding_flips"]
    assert Result.model_validate(fields).precision == {}


def test_a_repeat_that_diverges_is_reported_and_not_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Finetuned.adapt

    def adapt(self: Finetuned, lm: Any, demonstrations: Any) -> Any:
        if self.moved == 2:
            raise TrainingError("the loss is nan")
        return plain(self, lm, demonstrations)

    monkeypatch.setattr(Finetuned, "adapt", adapt)
    rounding = compare(small_config(rates=(TAME,), **CHANGES), lm=float32_lm(), task=small_task()).result.precision[
        "ft"
    ]
    assert rounding.diverged == [2]
    assert not rounding.stable
    assert rounding.log_probability.n == 5
    assert rounding.largest["2"] is None


@pytest.mark.parametrize("learners", [("zsl", "ft"), ("ft",)])
def test_without_context_answers_are_compared_all_the_same(learners: tuple[str, ...]) -> None:
    config = small_config(rates=(WILD,), **{**CHANGES, "learners": learners, "controls": (), "seeds": (1,)})
    result = compare(config, lm=float32_lm(), task=small_task()).result
    rounding = result.precision["ft"]
    assert rounding.log_probability.n == 5
    assert rounding.similarity == {}


def test_a_search_takes_the_stable_rate_among_equals() -> None:
    config = small_config(rates=(TAME, WILD), **{**CHANGES, "rounding": "choose", "seeds": (1,), "controls": ()})
    report = compare(config.model_copy(update={"rounding": "report"}), lm=float32_lm(), task=small_task()).result
    choose = compare(config, lm=float32_lm(), task=small_task()).result
    assert all(trial.rounding is None for trial in report.trials)
    first = max(report.trials, key=lambda trial: (trial.validation_accuracy, trial.validation_log_probability))
    repeated = [trial for trial in choose.trials if trial.rounding is not None]
    assert first.learning_rate in [trial.learning_rate for trial in repeated]
    (chosen,) = [trial for trial in choose.trials if trial.chosen]
    assert chosen.rounding is not None


def test_the_papers_preset_chooses_as_the_paper_does_and_reports() -> None:
    assert comparison_config("tiny", "toy", preset="dai2023").rounding == "report"
    assert comparison_config("tiny", "toy").rounding == "choose"


@pytest.mark.parametrize("changes", [{"rounding": "none"}, {"learners": ("zsl", "icl")}, {"k": 0}])
def test_nothing_is_repeated_without_training_or_with_rounding_none(changes: dict[str, Any]) -> None:
    assert small_config(**CHANGES).repeats_finetuning
    assert not small_config(**{**CHANGES, "controls": (), **changes}).repeats_finetuning
