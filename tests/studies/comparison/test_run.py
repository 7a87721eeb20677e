import dataclasses
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from dualform.errors import NumericalError, TrainingError
from dualform.learners import finetuned
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel
from dualform.report.measures import measure_of
from dualform.studies import tuning
from dualform.studies.comparison.charts import head_map_chart
from dualform.studies.comparison.config import CHEAP_CONTROLS
from dualform.studies.comparison.run import Comparison, compare
from dualform.tasks.demonstrations import draw_demonstrations
from tests.studies.small import (
    N_REPORT,
    N_SELECTION,
    MemoryStore,
    RecordedProgress,
    numbers,
    small_config,
    small_lm,
    small_task,
    with_other_labels,
)
from tests.tiny import tiny_model, tiny_tokenizer


@cache
def run(**changes: Any) -> Comparison:
    """A small comparison; tests only read it."""
    return compare(small_config(**changes), lm=small_lm(), task=small_task())


def test_the_same_settings_give_the_same_numbers() -> None:
    config = small_config(learners=("zsl", "icl", "ft", "lora", "probe"), rates=(1e-3, 1e-2), lora_rates=(1e-3,))

    first, again = (compare(config, lm=small_lm(), task=small_task()).result for _ in range(2))

    assert first.config == config.model_dump(mode="json")
    assert numbers(again) == numbers(first)


def test_lora_is_timed_with_the_records_that_finetuning_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    read_group = AdaptedModel.read_group
    wanted: dict[str, Recording] = {}

    def watched(self: AdaptedModel, queries: Any, indices: Any, want: Recording = NO_RECORDING, *args: Any) -> Any:
        wanted[self.learner] = want
        return read_group(self, queries, indices, want, *args)

    monkeypatch.setattr(AdaptedModel, "read_group", watched)
    config = small_config(learners=("zsl", "icl", "ft", "lora"), lora_rates=(1e-3,), seeds=(1,))
    compare(config, lm=small_lm(), task=small_task())

    assert wanted["lora"] == wanted["ft"] != NO_RECORDING


def test_other_seeds_give_other_demonstrations_and_other_numbers() -> None:
    first, second = run(seeds=(1,)).result, run(seeds=(2,)).result

    assert first.demonstrations is not None
    assert second.demonstrations is not None
    assert first.demonstrations.rows["1"] != second.demonstrations.rows["2"]
    assert first.similarity["sim_aou"].mean != second.similarity["sim_aou"].mean
    # Zero-shot sees no demonstrations.
    assert first.accuracy["zsl"].mean == second.accuracy["zsl"].mean


def test_a_seed_gives_the_same_numbers_alone_and_among_others() -> None:
    alone, among = run(seeds=(2,)).result, run(seeds=(1, 2)).result

    assert among.accuracy["icl"].per_seed["2"] == alone.accuracy["icl"].per_seed["2"]
    for name, measure in alone.similarity.items():
        assert among.similarity[name].per_seed["2"] == measure.per_seed["2"], name


def test_every_learner_gets_the_same_demonstrations_in_the_same_order() -> None:
    comparison = run()
    demonstrations = comparison.result.demonstrations
    assert demonstrations is not None
    train = {example.row for example in small_task().split("train")}

    for rows in demonstrations.rows.values():
        assert len(rows) == len(set(rows)) == 4
        assert set(rows) <= train
    assert demonstrations.k_requested == demonstrations.k_effective == 4


def test_without_demonstrations_context_learning_is_zero_shot() -> None:
    comparison = run(k=0)

    for record in comparison.records:
        zsl, icl, ft = (record.log_probabilities[name] for name in ("zsl", "icl", "ft"))
        torch.testing.assert_close(icl, zsl, rtol=0, atol=0)
        torch.testing.assert_close(ft, zsl, rtol=0, atol=1e-12)
    similarity = comparison.result.similarity
    assert (similarity["sim_aou"].mean, similarity["sim_aou"].n) == (None, 0)
    assert "kendall" not in similarity
    assert similarity["agreement"].mean == 1
    assert (similarity["rec2ftp"].mean, similarity["rec2ftp"].n) == (None, 0)


def test_with_demonstrations_context_learning_is_not_zero_shot() -> None:
    record = run().records[0]

    assert (record.log_probabilities["icl"] - record.log_probabilities["zsl"]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["relaxation", "direct_update"])
def test_how_far_softmax_is_from_its_linear_form_and_updates_from_each_other_is_kept_for_each_head(name: str) -> None:
    similarity, anatomy = run().result.similarity[name], small_lm().anatomy

    assert similarity.per_head is not None
    assert similarity.per_layer is not None
    heads = anatomy.n_heads if name == "relaxation" else anatomy.layers[0].n_kv_heads
    assert [len(layer) for layer in similarity.per_head] == [heads] * len(anatomy.layers)
    means = [sum(value for value in layer if value is not None) / heads for layer in similarity.per_head]
    assert means == pytest.approx(similarity.per_layer)
    # Heads differ, and none is exactly linear under softmax.
    assert len({value for layer in similarity.per_head for value in layer}) == heads * len(anatomy.layers)
    assert max(value for layer in similarity.per_head for value in layer if value is not None) < 1 - 1e-6
    panels = head_map_chart(run().result)
    assert panels is not None
    assert measure_of(name).title in json.dumps(panels.to_dict())


def test_finetuning_at_rate_zero_is_zero_shot() -> None:
    result = run(rates=(0.0,)).result

    assert result.accuracy["ft"].per_seed == result.accuracy["zsl"].per_seed
    assert (result.similarity["sim_aou"].mean, result.similarity["sim_aou"].n) == (None, 0)
    assert result.similarity["sim_am"].mean == pytest.approx(result.similarity["sim_am_before"].mean, abs=1e-12)


@pytest.mark.parametrize("bounds", [{"max_examples": 1}, {"max_examples": 3}, {"max_row": 40}])
def test_measures_do_not_depend_on_how_queries_share_a_row(bounds: dict[str, Any]) -> None:
    narrow = dataclasses.replace(small_lm(), **bounds)
    comparison = compare(small_config(), lm=narrow, task=small_task())

    for mine, theirs in zip(comparison.records, run().records, strict=True):
        for learner, table in mine.log_probabilities.items():
            torch.testing.assert_close(table, theirs.log_probabilities[learner], rtol=0, atol=1e-10)
        assert mine.measures.keys() == theirs.measures.keys()
        for name, value in mine.measures.items():
            # Updates are small differences: they keep fewer digits than the outputs. In the first layer the words
            # that open every prompt give equal training queries, and rounding decides whether ranks see a tie.
            tolerance = 5e-3 if name == "kendall" else 1e-7
            torch.testing.assert_close(value, theirs.measures[name], rtol=0, atol=tolerance, msg=name, equal_nan=True)


def test_queries_come_back_in_their_own_order() -> None:
    # Rows are filled by length, so an order kept by accident would be that of the lengths.
    comparison = run(limit=None)
    one_by_one = dataclasses.replace(small_lm(), max_examples=1)
    lengths = [len(example.fields["text"]) for example in comparison.description.examples]
    assert lengths != sorted(lengths)

    table = compare(small_config(limit=None, seeds=(1,)), lm=one_by_one, task=small_task()).records[0]

    torch.testing.assert_close(
        table.log_probabilities["icl"], comparison.records[0].log_probabilities["icl"], rtol=0, atol=1e-10
    )


RATES = (1e-4, 1e-3, 1e-2, 3e-2)


def test_labels_of_the_reported_queries_do_not_change_the_rate_chosen() -> None:
    turned = with_other_labels(small_task(), "report")
    settings = small_config(rates=RATES, seeds=(1,), patience=9)

    straight, other = (compare(settings, lm=small_lm(), task=task).result for task in (small_task(), turned))

    assert straight.trials == other.trials
    assert sum(trial.chosen for trial in straight.trials) == 1
    assert straight.accuracy["ft"].mean == pytest.approx(1 - (other.accuracy["ft"].mean or 0))


@pytest.mark.parametrize(("split", "select_on"), [("selection", "validation"), ("report", "report")])
def test_labels_of_the_queries_that_choose_do_change_the_search(split: str, select_on: str) -> None:
    turned = with_other_labels(small_task(), split)
    settings = small_config(rates=RATES, seeds=(1,), patience=9, select_on=select_on)

    straight, other = (compare(settings, lm=small_lm(), task=task).result for task in (small_task(), turned))

    assert straight.trials != other.trials


def test_choosing_on_the_reported_queries_is_noted() -> None:
    result = run(select_on="report", seeds=(1,)).result

    assert any("chosen on the reported queries" in warning for warning in result.warnings)
    assert result.task["selection_split"] == result.task["report_split"] == "report"
    assert not any("very queries" in warning for warning in run().result.warnings)


def test_splits_are_disjoint_and_counted() -> None:
    result = run(limit=None, selection_limit=None).result

    assert (result.task["n_report"], result.task["n_selection"]) == (N_REPORT, N_SELECTION)
    assert result.accuracy["icl"].n == 2 * N_REPORT
    assert result.task["report_split"] != result.task["selection_split"]


def test_the_first_seed_chooses_the_rate_for_all() -> None:
    result = run(rates=RATES, seeds=(1, 2)).result
    by_seed = {seed: [trial for trial in result.trials if trial.seed == seed] for seed in (1, 2)}

    assert len(by_seed[1]) == len(RATES)
    (only,) = by_seed[2]
    (chosen,) = [trial for trial in by_seed[1] if trial.chosen]
    assert only.learning_rate == chosen.learning_rate
    assert only.validation_accuracy is None


def test_with_tune_each_every_seed_searches() -> None:
    result = run(rates=RATES, seeds=(1, 2), tune="each").result

    assert [trial.seed for trial in result.trials] == [1] * len(RATES) + [2] * len(RATES)


def test_the_papers_seed_is_the_best_of_all_with_a_note() -> None:
    every = run(seeds=(1, 2, 3), limit=None).result
    result = run(seeds=(1, 2, 3), limit=None, select="icl", select_on="report").result
    accuracies = every.accuracy["icl"].per_seed
    best = max(accuracies, key=lambda seed: (accuracies[seed] or 0, -int(seed)))

    assert list(result.accuracy["icl"].per_seed) == [best]
    (note,) = [warning for warning in result.warnings if "was chosen among 3" in warning]
    assert note.startswith(f"Seed {best} ")
    assert "The accuracy of ICL is biased upwards by this" in note


SELECTED_SEEDS = (1, 2, 3, 4)


@cache
def accuracy_on(split: str, seed: int, rate: float | None = None) -> tuple[float, float]:
    """ICL's (or with a rate FT's) accuracy on a split, and the mean log-probability of what is right; a plain loop."""
    lm, task = small_lm(), small_task()
    encoder = Encoder(lm, task)
    encoded = encoder.demonstrations(draw_demonstrations(task, 4, seed, balanced=True))
    adapted = InContext().adapt(lm, encoded) if rate is None else Finetuned(encoder.opening, rate).adapt(lm, encoded)
    right, total = 0, 0.0
    for example in task.split(split):
        row = answer_log_probabilities(adapted, lm, [encoder.query(example)])[0].tolist()
        right += row.index(max(row)) == example.label
        total += row[example.label]
    return right / len(task.split(split)), total / len(task.split(split))


@cache
def chosen_by_hand(select: str, split: str) -> tuple[int, float | None]:
    """Seed and FT's rate."""
    best: tuple[float, int, float | None] | None = None
    for seed in SELECTED_SEEDS:
        rate = None
        scores = [accuracy_on(split, seed)[0]] if select in ("icl", "both") else []
        if select in ("ft", "both"):
            rate = max(SELECT_RATES, key=lambda each, seed=seed: (*accuracy_on(split, seed, each), -each))  # type: ignore[misc]
            scores.append(accuracy_on(split, seed, rate)[0])
        score = sum(scores) / len(scores)
        if best is None or score > best[0]:
            best = (score, seed, rate)
    assert best is not None
    return best[1], best[2]


SELECT_RATES = (1e-3, 1e-2, 5e-2)


@cache
def select(select: str, select_on: str = "validation", turned: bool = False, **changes: Any) -> Comparison:
    """A comparison of the best seed; `turned` plants a leak: every reported label the other way round."""
    settings = {"seeds": SELECTED_SEEDS, "rates": SELECT_RATES, "limit": None, "selection_limit": None, "patience": 9}
    config = small_config(select=select, select_on=select_on, **(settings | changes))
    task = with_other_labels(small_task(), "report") if turned else small_task()
    return compare(config, lm=small_lm(), task=task)


@pytest.mark.parametrize("select_on", ["validation", "report"])
@pytest.mark.parametrize("by", ["icl", "ft", "both"])
def test_the_seed_and_rate_chosen_are_those_that_a_plain_loop_chooses(by: str, select_on: str) -> None:
    seed, rate = chosen_by_hand(by, "selection" if select_on == "validation" else "report")

    comparison = select(by, select_on)

    assert [record.seed for record in comparison.records] == [seed]
    chosen = {trial.learning_rate for trial in comparison.result.trials if trial.chosen and trial.learner == "ft"}
    if rate is not None:
        assert chosen == {rate}
    # Nothing of the choice is left in the numbers but the choice.
    alone = select("none", select_on, seeds=(seed,))
    assert comparison.result.accuracy == alone.result.accuracy
    assert comparison.result.similarity == alone.result.similarity
    assert comparison.result.trials == alone.result.trials
    (note,) = [warning for warning in comparison.result.warnings if "was chosen among 4" in warning]
    learner = {"icl": "ICL", "ft": "FT", "both": "ICL and FT (mean)"}[by]
    assert note.startswith(f"Seed {seed} was chosen among 4 for the accuracy of {learner} on the ")
    bias = f"The accuracy of {learner} is biased upwards by this, which no interval includes."
    assert note.endswith(bias if select_on == "report" else "The reported queries were not used.")


def test_the_seeds_chosen_differ_by_learner_and_split_so_that_the_loop_above_says_something() -> None:
    seeds = {chosen_by_hand(by, split)[0] for by in ("icl", "ft", "both") for split in ("selection", "report")}

    assert len(seeds) > 1
    # Not simply the first.
    assert seeds != {SELECTED_SEEDS[0]}


@pytest.mark.parametrize("by", ["icl", "ft", "both"])
def test_labels_of_the_reported_queries_do_not_change_what_is_chosen_on_others(by: str) -> None:
    # What was best there is worst.
    straight, other = select(by), select(by, turned=True)

    assert [record.seed for record in straight.records] == [record.seed for record in other.records]
    assert straight.result.trials == other.result.trials
    assert straight.records[0].rates == other.records[0].rates


@pytest.mark.parametrize("by", ["icl", "ft", "both"])
def test_labels_of_the_reported_queries_do_change_what_is_chosen_on_them(by: str) -> None:
    straight, other = select(by, "report"), select(by, "report", turned=True)

    assert [record.seed for record in straight.records] != [record.seed for record in other.records]
    assert straight.result.trials != other.result.trials


def test_one_seed_needs_no_choice() -> None:
    result = run(seeds=(2,), select="icl", select_on="report").result

    assert not any("was chosen among" in warning for warning in result.warnings)
    assert result.accuracy == run(seeds=(2,), select_on="report").result.accuracy


def test_the_choice_of_a_seed_is_kept_and_not_made_twice() -> None:
    store = MemoryStore()
    settings = small_config(seeds=(1, 2), select="both", rates=SELECT_RATES)
    first = compare(settings, lm=small_lm(), task=small_task(), pieces=store)
    names = ["choosing, seed 1", "choosing, seed 2", f"seed {first.records[0].seed}"]
    assert store.put_names == names
    del store.pieces["choosing, seed 2"], store.pieces[names[-1]]

    again = compare(settings, lm=small_lm(), task=small_task(), pieces=store)

    assert store.put_names == [*names, *names[1:]]
    assert numbers(again.result) == numbers(first.result)


def test_a_rate_that_diverges_is_dropped_with_a_warning() -> None:
    result = run(rates=(1e-3, 1e30), seeds=(1,)).result

    assert [(trial.learning_rate, trial.status, trial.chosen) for trial in result.trials] == [
        (1e-3, "finished", True),
        (1e30, "diverged", False),
    ]
    assert any("diverged" in warning and warning.endswith(": ft at 1e+30.") for warning in result.warnings)


def test_every_rate_diverging_is_an_error_that_names_them() -> None:
    with pytest.raises(TrainingError, match=r"every learning rate tried diverged \(1e\+29\)\. Give lower ones"):
        compare(small_config(rates=(1e30, 1e29)), lm=small_lm(), task=small_task())


def diverging_above(limit: float, from_adaptation: int) -> Callable[..., Any]:
    """Finetuning that diverges above a rate once it has been called so many times."""
    calls = 0

    class Stubborn:
        def __init__(self, opening: tuple[int, ...], rate: float, loss_on: Any, moved: int | None) -> None:
            self.inner = Finetuned(opening, rate, loss_on, moved=moved)

        def adapt(self, *args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= from_adaptation and self.inner.learning_rate > limit:
                raise TrainingError("diverged")
            return self.inner.adapt(*args)

    return Stubborn


def test_a_later_seed_on_which_the_chosen_rate_diverges_takes_the_next_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    # All of the first seed's trials end well; the highest rate is made the best by being the only good one.
    monkeypatch.setattr(finetuned, "Finetuned", diverging_above(1e-3, from_adaptation=len(RATES) + 1))
    result = compare(small_config(rates=RATES, patience=9), lm=small_lm(), task=small_task()).result
    (chosen,) = [trial.learning_rate for trial in result.trials if trial.seed == 1 and trial.chosen]
    second = [(trial.learning_rate, trial.status) for trial in result.trials if trial.seed == 2]

    assert chosen > 1e-3, "this case needs a high rate to be best on the first seed"
    expected = [(rate, "diverged") for rate in reversed(RATES) if 1e-3 < rate <= chosen] + [(1e-3, "finished")]
    assert second == expected
    assert any(f"ft at {chosen:g}" in warning for warning in result.warnings)


def test_a_later_seed_on_which_the_chosen_rate_gives_no_numbers_takes_the_next_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def first_is_nan(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise NumericalError("log-probabilities of answers are NaN")
        return answer_log_probabilities(*args)

    monkeypatch.setattr(tuning, "answer_log_probabilities", first_is_nan)
    result = compare(small_config(rates=(0.0, 1e-2)), lm=small_lm(), task=small_task()).result
    chosen = {trial.seed: trial.learning_rate for trial in result.trials if trial.chosen}
    later = [(trial.learning_rate, trial.status) for trial in result.trials if trial.seed == 2]

    assert chosen[1] == 1e-2, "the case needs a lower rate to fall back to"
    assert later == [(1e-2, "diverged"), (0.0, "finished")]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ((1e-2,), r"ft, seed 2: training diverged at the learning rate 0\.01\. Give a lower one with --rates"),
        (
            (1e-3, 1e-2),
            r"ft, seed 2: training diverged at the rate chosen on the first seed \(0\.0\d+\) and at every lower rate",
        ),
    ],
)
def test_a_later_seed_on_which_every_rate_diverges_is_an_error(
    rates: tuple[float, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuned, "Finetuned", diverging_above(0.0, from_adaptation=len(rates) + 1))

    with pytest.raises(TrainingError, match=message):
        compare(small_config(rates=rates), lm=small_lm(), task=small_task())


def test_demonstrations_that_do_not_fit_are_left_out_for_all_learners() -> None:
    with pytest.warns(UserWarning, match=r"4 demonstrations take \d+ tokens, but a context of 85"):
        result = compare(small_config(context=85, seeds=(1,)), lm=small_lm(), task=small_task()).result

    demonstrations = result.demonstrations
    assert demonstrations is not None
    assert 0 < demonstrations.k_effective < demonstrations.k_requested == 4
    assert len(demonstrations.rows["1"]) == demonstrations.k_effective == demonstrations.k_effective_per_seed["1"]
    # What does not fit in context is not finetuned on either.
    assert result.cost["ft"].adapt_tokens == pytest.approx(demonstrations.tokens["1"], abs=3 * 4)
    (note,) = [warning for warning in result.warnings if "demonstrations were requested" in warning]
    assert f"seed 1: {demonstrations.k_effective}" in note


def test_the_models_own_limit_bounds_the_context() -> None:
    # 512 positions hold these demonstrations, 40 do not.
    assert run(k=16, seeds=(1,)).result.demonstrations.k_effective == 16  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match="but a context of 512 leaves room for"):
        result = compare(small_config(k=28, seeds=(1,)), lm=small_lm(), task=small_task()).result
    assert result.demonstrations is not None
    assert result.demonstrations.k_effective < 28


def test_finished_seeds_are_not_run_again() -> None:
    store = MemoryStore()
    compare(small_config(), lm=small_lm(), task=small_task(), pieces=store)
    del store.pieces["seed 2"]

    result = compare(small_config(), lm=small_lm(), task=small_task(), pieces=store).result

    assert store.put_names == ["seed 1", "seed 2", "seed 2"]
    assert numbers(result) == numbers(run().result)


@pytest.mark.parametrize("split", ["report", "selection", "train"])
def test_seeds_finished_with_other_data_are_run_again(split: str) -> None:
    store = MemoryStore()
    compare(small_config(), lm=small_lm(), task=small_task(), pieces=store)

    compare(small_config(), lm=small_lm(), task=with_other_labels(small_task(), split), pieces=store)

    assert store.put_names == ["seed 1", "seed 2"] * 2


def test_seeds_finished_with_other_weights_are_run_again() -> None:
    store = MemoryStore()
    compare(small_config(), lm=small_lm(), task=small_task(), pieces=store)
    model = tiny_model("gpt2", seed=1, dtype=torch.float64)

    compare(small_config(), lm=LanguageModel.wrap(model, tiny_tokenizer(), "tiny"), task=small_task(), pieces=store)

    assert store.put_names == ["seed 1", "seed 2"] * 2


def test_a_subset_of_learners_measures_what_it_can() -> None:
    result = run(learners=("icl",)).result

    assert list(result.accuracy) == ["icl"]
    assert result.similarity == {}
    assert result.controls == {}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rates": RATES, "tune": "each"},
        {"learners": ("zsl", "lora", "probe")},
        {"select": "both"},
        {"controls": CHEAP_CONTROLS},
        {"controls": CHEAP_CONTROLS, "limit": None, "control_limit": 5},
        {"controls": ("rates",), "rates": RATES},
        {"rounding": "choose", "rates": RATES, "tune": "each"},
        {"rounding": "report", "controls": ()},
    ],
)
def test_the_progress_bar_ends_at_its_announced_total(changes: dict[str, Any]) -> None:
    progress = RecordedProgress()
    compare(small_config(**changes), lm=small_lm(), task=small_task(), progress=progress)

    assert progress.total > 0
    assert progress.done == pytest.approx(progress.total)


def test_the_model_is_as_before() -> None:
    lm = small_lm()
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    compare(small_config(learners=("zsl", "icl", "ft", "lora", "probe")), lm=lm, task=small_task())

    after = dict(lm.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
