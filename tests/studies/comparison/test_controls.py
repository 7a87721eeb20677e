"""What stands in for ICL or FT: each control by its name, and what none of them may touch."""

import dataclasses
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel, Readings
from dualform.studies.comparison import controls as module
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.controls import (
    RATE,
    PreparedControls,
    RandomDirection,
    RandomUpdates,
    StandIn,
    UntrainedComparison,
    control_of_draw,
    length_task,
    prepare,
)
from dualform.studies.comparison.own_controls import RANDOM_UPDATES
from dualform.studies.comparison.run import Comparison, compare
from dualform.studies.controls import CONTROLS
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.sides import (
    DemonstrationTokens,
    PromptedSide,
    Side,
    compute_measures,
    recordings_for,
    trained_side,
)
from dualform.tasks.build import build_task
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask
from dualform.tasks.task import Task
from tests.studies.known_controls import PAIRS
from tests.studies.small import N_REPORT, numbers, sentences, small_config, small_experiment, small_lm, small_task
from tests.tiny import EOS_ID, tiny_model, tiny_tokenizer

ALL = CONTROLS.own
RATES = (1e-3, 1e-2)
# The tiny tokenizer knows few words whole: those of other tasks begin with the same space.
pytestmark = pytest.mark.filterwarnings("ignore:label words '(short|rain)' and '(long|sun)' begin with the same token")


@cache
def run(**changes: Any) -> Comparison:
    """A small comparison; tests only read it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "label words 'short' and 'long'")
        return compare(small_config(**({"rates": RATES} | changes)), lm=small_lm(), task=small_task())


def run_all() -> Comparison:
    return run(controls=("all",))


@dataclass
class SeedSetup:
    """One seed with its two learners, which records what its controls encode and train on."""

    experiment: Experiment[ComparisonConfig]
    drawn: DemonstrationSet
    icl: AdaptedModel
    ft: AdaptedModel
    rate: float
    prefixes: list[tuple[int, ...]]
    """Prefixes encoded after the learners were adapted."""
    trained_on: list[EncodedDemonstrations]

    @property
    def encoded(self) -> EncodedDemonstrations:
        return self.drawn.encoded

    def make(self, *names: str, known: dict[str, float] | None = None) -> PreparedControls:
        config = self.experiment.config.model_copy(update={"controls": names})
        experiment = dataclasses.replace(self.experiment, config=config)
        return prepare(experiment, self.drawn, self.icl, self.ft, self.rate, known or {}, lambda name, finished: None)

    def stand_in(self, name: str) -> StandIn:
        (control,) = self.make(name).controls
        assert isinstance(control, StandIn)
        assert control.name == name
        return control

    def sides(self) -> tuple[Readings, dict[str, Side]]:
        """Zero-shot and both sides on all queries."""
        experiment, indices = self.experiment, range(len(self.experiment.queries))
        want = recordings_for(experiment.lm.anatomy, len(self.encoded.sequences))
        tokens = DemonstrationTokens.of(self.encoded, experiment.lm.device)
        zero_shot = ZeroShot(experiment.encoder.opening).adapt(experiment.lm, self.encoded)
        zsl = zero_shot.read_group(experiment.queries, indices, want.zsl)
        icl = self.icl.read_group(experiment.queries, indices, want.context)
        ft = self.ft.read_group(experiment.queries, indices, want.weights)
        prompted = PromptedSide.of(self.icl, tokens.content, tokens)
        return zsl, {"icl": prompted.side(icl), "ft": trained_side(self.ft, ft, zsl, tokens)}

    def read(self, control: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        zsl, sides = self.sides()
        numbers_read: tuple[dict[str, Tensor], dict[str, Tensor]] = control.read(
            self.experiment, range(len(self.experiment.queries)), zsl, sides
        )
        return numbers_read


@contextmanager
def seed_setup(
    experiment: Experiment[ComparisonConfig] | None = None, rate: float = 1e-2, seed: int = 1
) -> Iterator[SeedSetup]:
    experiment = experiment or small_experiment(rates=RATES)
    drawn = experiment.draw(seed)
    icl = InContext().adapt(experiment.lm, drawn.encoded)
    ft = Finetuned(experiment.encoder.opening, rate).adapt(experiment.lm, drawn.encoded)
    setup = SeedSetup(experiment, drawn, icl, ft, rate, [], [])
    encode, adapt = LanguageModel.encode, Finetuned.adapt

    def watched_encode(self: LanguageModel, prefix: Any) -> Any:
        setup.prefixes.append(tuple(prefix))
        return encode(self, prefix)

    def watched_adapt(self: Finetuned, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        setup.trained_on.append(demonstrations)
        return adapt(self, lm, demonstrations)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "encode", watched_encode)
        patch.setattr(Finetuned, "adapt", watched_adapt)
        yield setup


def text(experiment: Experiment[ComparisonConfig], ids: tuple[int, ...]) -> str:
    decoded: str = experiment.lm.tokenizer.decode(ids)
    return decoded


# Each by its name.


def test_random_is_finetunings_side_turned_into_noise_and_answers_nothing() -> None:
    with seed_setup() as setup:
        (control,) = setup.make("random").controls
        measures, answers = setup.read(control)
        prefixes = list(setup.prefixes)

    assert isinstance(control, RandomDirection)
    assert answers == {}
    assert not {name for name in measures if "agreement" in name or "top_k" in name or "vocabulary" in name}
    # Zero-shot was encoded for the test; the control needs no forward.
    assert prefixes == [setup.experiment.encoder.opening]


def test_random_update_is_as_long_as_what_finetuning_changed_and_in_the_same_places() -> None:
    with seed_setup() as setup:
        (control,) = setup.make("random_update").controls

    assert isinstance(control, RandomUpdates)
    assert setup.trained_on == []
    assert len(control.draws) == RANDOM_UPDATES
    for draw in control.draws:
        for mine, theirs in zip(draw.adapted.deltas, setup.ft.deltas, strict=True):
            assert (mine.parameter, mine.axis) == (theirs.parameter, theirs.axis)
            assert float(mine.delta.norm()) == pytest.approx(float(theirs.delta.norm()), rel=1e-6)
            assert abs(float((mine.delta * theirs.delta).sum())) < 0.3 * float(theirs.delta.norm()) ** 2


def test_random_update_is_the_mean_of_draws_that_differ() -> None:
    with seed_setup() as setup:
        (control,) = setup.make("random_update").controls
        assert isinstance(control, RandomUpdates)
        zsl, sides = setup.sides()
        indices = range(len(setup.experiment.queries))
        whole, answers = control.read(setup.experiment, indices, zsl, sides)
        single = [draw.read(setup.experiment, indices, zsl, sides) for draw in control.draws]

    name = "control/random_update/sim_aou_raw"
    torch.testing.assert_close(whole[name], torch.stack([measured[name] for measured, _ in single]).mean(dim=0))
    assert len({float(measured[name].mean()) for measured, _ in single}) == RANDOM_UPDATES
    assert list(answers) == ["random_update", *(f"random_update#{n}" for n in range(2, RANDOM_UPDATES + 1))]
    assert {control_of_draw(each) for each in answers} == {"random_update"}


@pytest.mark.parametrize("separator", [None, "\n\n", ""])
def test_position_shift_has_icls_positions_after_separators_only(separator: str | None) -> None:
    task = dataclasses.replace(small_task(), template=dataclasses.replace(small_task().template, separator=separator))
    experiment = Experiment.of(small_config(rates=RATES), small_lm(), task)
    with seed_setup(experiment) as setup:
        control = setup.stand_in("position_shift")
        (prefix,) = setup.prefixes

    assert len(prefix) == len(setup.encoded.prefix) == control.adapted.n_prefix == setup.icl.n_prefix
    assert prefix[0] == experiment.lm.bos
    between = {None: {EOS_ID}, "\n\n": set(experiment.lm.tokenizer("\n\n")["input_ids"]), "": {experiment.lm.bos}}[
        separator
    ]
    assert set(prefix[1:]) == between
    # No token of it is a demonstration's, so nothing can be ranked.
    assert control.tokens is None
    assert control.pairs == (module.ControlPair("position_shift", "ft", "first"),)


@pytest.mark.parametrize("name", ["shuffled_labels", "random_labels"])
def test_wrong_labels_follow_the_same_texts_in_the_same_order(name: str) -> None:
    # Twelve, so that a shuffle moves some.
    with seed_setup(small_experiment(rates=RATES, k=12)) as setup:
        control = setup.stand_in(name)
        (prefix,) = setup.prefixes
    demonstrations, words = setup.drawn.demonstrations, setup.experiment.task.label_words or ()
    prompt_text = text(setup.experiment, prefix)

    assert prefix != setup.encoded.prefix
    labels = []
    for example in demonstrations.examples:
        prompt = setup.experiment.task.template.render(example)
        _, match, prompt_text = prompt_text.partition(prompt)
        assert match, f"{prompt!r} does not follow"
        labels.append(prompt_text.split("\n\n")[0].strip())
        assert set(labels) <= set(words)
    true = [words[example.label] for example in demonstrations.examples]
    assert labels != true
    if name == "shuffled_labels":
        assert sorted(labels) == sorted(true)
    assert control.pairs == (module.ControlPair(name, "ft", "first"),)


def test_other_demonstrations_share_no_row_with_the_seeds() -> None:
    with seed_setup() as setup:
        control = setup.stand_in("other_demonstrations")
        (other,) = setup.trained_on

    # All texts differ, so a row that both had would show.
    assert len(other.sequences) == len(setup.encoded.sequences) == 4
    mine = {example.fields["text"] for example in setup.drawn.demonstrations.examples}
    assert not [
        sequence for sequence in other.sequences if any(each in text(setup.experiment, sequence) for each in mine)
    ]
    # Finetuned on those, beside ICL on these.
    assert control.pairs == (module.ControlPair("other_demonstrations", "icl", "second"),)
    assert control.tokens is None


def test_a_train_split_too_small_for_other_demonstrations_is_noted() -> None:
    with seed_setup(small_experiment(rates=RATES, k=20)) as setup:
        prepared = setup.make("other_demonstrations")
        (other,) = setup.trained_on

    assert len(other.sequences) == 20
    assert set(other.sequences) & set(setup.encoded.sequences)
    assert other.sequences != setup.encoded.sequences
    (note,) = prepared.notes
    assert "The train split is too small for a second, disjoint set of demonstrations" in note
    with seed_setup() as setup:
        assert setup.make("other_demonstrations").notes == ()


def test_icl_order_shows_the_same_demonstrations_in_another_order() -> None:
    with seed_setup() as setup:
        control = setup.stand_in("icl_order")
        (prefix,) = setup.prefixes
    parts, others = (
        text(setup.experiment, ids).removeprefix("<s>").split("\n\n") for ids in (setup.encoded.prefix, prefix)
    )

    assert others != parts
    assert sorted(others) == sorted(parts)
    assert len(parts) == 4 + 1
    assert control.pairs == (module.ControlPair("icl_order", "icl", "second"),)
    assert control.tokens is not None
    prefix_tokens = [prefix[at] for at in control.tokens.content.tolist()]
    assert prefix_tokens == [setup.encoded.prefix[at] for at in setup.encoded.content]


def test_ft_order_trains_on_the_same_demonstrations_in_another_order() -> None:
    with seed_setup() as setup:
        control = setup.stand_in("ft_order")
        (other,) = setup.trained_on

    assert other.sequences != setup.encoded.sequences
    assert sorted(other.sequences) == sorted(setup.encoded.sequences)
    # Beside FT, in second place.
    assert control.pairs == (module.ControlPair("ft_order", "ft", "second"),)


def test_both_order_controls_use_the_same_other_order() -> None:
    with seed_setup() as setup:
        setup.make("icl_order", "ft_order")
        prompt_text = text(setup.experiment, setup.prefixes[0])
        (trained_on,) = setup.trained_on

    assert prompt_text == "<s>" + "".join(
        f"{text(setup.experiment, sequence[1:])}\n\n" for sequence in trained_on.sequences
    )


def test_other_task_has_another_question_about_the_same_texts() -> None:
    with seed_setup() as setup:
        control = setup.stand_in("other_task")
        (prefix,) = setup.prefixes
    prompt_text = text(setup.experiment, prefix)
    texts = [example.fields["text"] for example in setup.drawn.demonstrations.examples]

    assert [prompt_text.count(f"Text: {each}\nLength:") for each in texts] == [1] * 4
    assert prompt_text.count("\nLength: short") + prompt_text.count("\nLength: long") == 4
    assert not any(word in prompt_text.lower() for word in ("negative", "positive"))
    # Other words, other tokens: there is nothing to rank beside FT's.
    assert control.tokens is None
    assert control.pairs == (module.ControlPair("other_task", "ft", "first"),)


def test_the_length_task_calls_the_longer_half_long() -> None:
    experiment = small_experiment(k=12)
    demonstrations = experiment.draw(1).demonstrations

    task, other = length_task(demonstrations, experiment.task)

    counts = [len(example.fields["text"].split()) for example in demonstrations.examples]
    assert len(set(counts)) > 1
    assert task.label_words == ("short", "long")
    assert other.rows == demonstrations.rows
    assert other.labels == tuple(example.label for example in other.examples)
    assert 6 <= sum(other.labels) < 12
    longest_short = max(count for count, label in zip(counts, other.labels, strict=True) if not label)
    shortest_long = min(count for count, label in zip(counts, other.labels, strict=True) if label)
    assert longest_short < shortest_long
    assert other.label_rule == "true"


def test_other_task_can_be_named(tmp_path: Path) -> None:
    folder = tmp_path / "weather"
    folder.mkdir()
    about = {"name": "weather", "label_names": ["rain", "sun"], "splits": {"train": {"file": "train.jsonl"}}}
    (folder / "dataset.json").write_text(json.dumps(about))
    rows = [{"text": f"day number {i}", "label": i % 2} for i in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experiment = small_experiment(rates=RATES, controls=("other_task",), other_task="weather", data_dir=str(tmp_path))

    with seed_setup(experiment) as setup:
        setup.stand_in("other_task")
        (prefix,) = setup.prefixes

    prompt_text = text(experiment, prefix)
    assert prompt_text.count("day number ") == 4
    assert not any(example.fields["text"] in prompt_text for example in setup.drawn.demonstrations.examples)


@pytest.mark.parametrize("name", ["untrained", "embeddings"])
def test_untrained_models_are_other_models_of_the_same_shape(name: str) -> None:
    with seed_setup() as setup:
        before = {each: weight.clone() for each, weight in setup.experiment.lm.model.named_parameters()}
        (control,) = setup.make(name).controls
        _, answers = setup.read(control)
    assert isinstance(control, UntrainedComparison)
    other = control.experiment.lm

    assert other.model is not setup.experiment.lm.model
    drawn = dict(other.model.named_parameters())
    assert {each: weight.shape for each, weight in drawn.items()} == {e: weight.shape for e, weight in before.items()}
    same = {each for each, weight in drawn.items() if torch.equal(weight, before[each])}
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert same == (embeddings if name == "embeddings" else set())
    # All three of its sides are its own.
    assert {control.zsl.lm, control.icl.adapted.lm, control.ft.lm} == {other}
    assert set(answers) == {f"{name}.zsl", f"{name}.icl", f"{name}.ft"}
    # The trained model is not looked at, nor touched.
    assert all(torch.equal(weight, before[each]) for each, weight in setup.experiment.lm.model.named_parameters())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("batch", ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        ("lcgd", ["h.0.attn.c_attn", "h.1.attn.c_attn"]),
        ("value_one_layer", ["h.1.attn.c_attn"]),
        ("mlp", ["h.0.mlp.c_fc", "h.0.mlp.c_proj", "h.1.mlp.c_fc", "h.1.mlp.c_proj"]),
    ],
)
def test_another_way_of_finetuning_has_a_rate_of_its_own(name: str, parts: list[str]) -> None:
    with seed_setup() as setup:
        prepared = setup.make(name)
        (control,) = prepared.controls
        again = setup.make(name, known={name: 1e-3})

    assert isinstance(control, StandIn)
    trained = {change.parameter.rpartition(".")[0].removeprefix("transformer.") for change in control.adapted.deltas}
    assert sorted(trained) == parts
    # Searched for like any learner's, and the search can be seen.
    assert [trial.learner for trial in prepared.trials] == [name] * len(RATES)
    (chosen,) = [trial.learning_rate for trial in prepared.trials if trial.chosen]
    assert prepared.rates == {name: chosen}
    # A rate that the first seed chose is used without a search.
    assert again.rates == {name: 1e-3}
    assert [(trial.learner, trial.validation_accuracy) for trial in again.trials] == [(name, None)]
    pairs = [(pair.control, pair.beside, pair.place) for pair in control.pairs]
    assert pairs == [(name, "icl", "second")] + ([("batch_sequential", "ft", "second")] if name == "batch" else [])


def test_with_tune_each_every_seed_searches_for_its_rates() -> None:
    with seed_setup(small_experiment(rates=RATES, tune="each")) as setup:
        prepared = setup.make("mlp", known={"mlp": 1e-3})

    assert len(prepared.trials) == len(RATES)
    assert all(trial.validation_accuracy is not None for trial in prepared.trials)


def test_rates_sweeps_the_grid_and_does_not_train_twice_at_the_rate_chosen() -> None:
    with seed_setup(small_experiment(rates=(1e-2, 1e-4, 1e-3))) as setup:
        controls = setup.make("rates").controls
        assert len(setup.trained_on) == 2

    assert [control.name for control in controls if isinstance(control, StandIn)] == [
        f"{RATE}0.0001", f"{RATE}0.001", f"{RATE}0.01",
    ]  # fmt: skip
    assert controls[-1].adapted is setup.ft  # type: ignore[attr-defined]
    assert controls[0].adapted is not setup.ft  # type: ignore[attr-defined]


def test_a_sweep_stops_at_the_first_rate_that_diverges_with_a_note() -> None:
    result = run(controls=("rates",), rates=(1e-2, 1e30), seeds=(1,)).result

    assert [point.learning_rate for point in result.rate_sweep] == [1e-2]
    assert "Seed 1: FT diverged at rate 1e+30; the sweep stops there." in result.warnings


def test_a_swept_rate_with_non_finite_answers_ends_the_sweep_and_not_the_comparison() -> None:
    # In half precision a last step can leave finite weights whose outputs are not: the search drops such a rate.
    lm = LanguageModel.wrap(tiny_model("gpt2", dtype=torch.float16), tiny_tokenizer(), "half")
    rate = next(
        rate
        for rate in (10 ** (i / 4) for i in range(8, 24))
        if _trains_to_nonsense(lm, small_experiment(k=1, rates=(1e-2,)), rate)
    )
    config = small_config(k=1, controls=("rates",), rates=(1e-2, rate), seeds=(1,))

    result = compare(config, lm=lm, task=small_task()).result

    assert [point.learning_rate for point in result.rate_sweep] == [1e-2]


def _trains_to_nonsense(lm: LanguageModel, experiment: Experiment[ComparisonConfig], rate: float) -> bool:
    drawn = experiment.draw(1)
    try:
        adapted = Finetuned(experiment.encoder.opening, rate).adapt(lm, drawn.encoded)
    except TrainingError:
        return False
    try:
        adapted.read_group(experiment.queries, range(len(experiment.queries)))
    except NumericalError:
        return True
    return False


def test_every_control_is_known_by_whose_answers_it_compares() -> None:
    result = run_all().result

    # `rates` has a place of its own in the result; one batch stands beside both sides.
    assert set(result.controls) == {*ALL, "batch_sequential"} - {"rates"}
    assert set(PAIRS) == set(result.controls) - {"random"}
    assert all("rec2ftp" in measures for name, measures in result.controls.items() if name != "random")
    assert [point.learning_rate for point in result.rate_sweep] == list(RATES)


# What each says.


def test_position_shift_is_not_moved_by_shuffling_labels_as_context_is() -> None:
    changes: dict[str, list[Tensor]] = {"position_shift": [], "icl": []}
    for rule in ("true", "shuffled"):
        with seed_setup(small_experiment(rates=RATES, k=12, label_rule=rule)) as setup:
            control = setup.stand_in("position_shift")
            indices = range(len(setup.experiment.queries))
            zsl, sides = setup.sides()
            want = recordings_for(setup.experiment.lm.anatomy, 1).weights
            shifted = control.adapted.read_group(setup.experiment.queries, indices, want)
            assert zsl.trace is not None
            assert shifted.trace is not None
            before = zsl.trace.output
            changes["position_shift"].append(shifted.trace.output - before)  # type: ignore[operator]
            changes["icl"].append(sides["icl"].trace.output - before)  # type: ignore[operator]
    true, shuffled = changes["position_shift"]
    assert true.norm() > 0.1

    # Bit for bit: it is the same prefix.
    assert torch.equal(true, shuffled)
    true, shuffled = changes["icl"]
    assert (true - shuffled).norm() > 0.01 * true.norm()


def test_position_shift_is_moved_by_labels_of_more_tokens() -> None:
    # Where words differ in length, wrong labels move the query itself: the two effects are then not apart.
    lengths = []
    rows = [{"text": text, "label": label} for text, label in sentences()]
    words = TaskOptions(label_words=("lukewarm", "positive"))
    task = build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), words)
    for rule in ("true", "random"):
        experiment = Experiment.of(small_config(k=12, label_rule=rule), small_lm(), task)
        with seed_setup(experiment) as setup:
            lengths.append(setup.stand_in("position_shift").adapted.n_prefix)

    assert lengths[0] != lengths[1]


def test_a_stand_in_takes_its_own_sides_place() -> None:
    with seed_setup() as setup:
        zsl, sides = setup.sides()
        indices = range(len(setup.experiment.queries))
        want = recordings_for(setup.experiment.lm.anatomy, 4)
        prompt, weights = setup.stand_in("shuffled_labels"), setup.stand_in("other_demonstrations")
        first, _ = prompt.read(setup.experiment, indices, zsl, sides)
        second, answers = weights.read(setup.experiment, indices, zsl, sides)
        reading = prompt.adapted.read_group(setup.experiment.queries, indices, want.context)
        assert prompt.prompted is not None
        mine = prompt.prompted.side(reading)
        tuned = weights.adapted.read_group(setup.experiment.queries, indices, want.weights)
        other = trained_side(weights.adapted, tuned, zsl, None)

    for measures, expected in (
        (first, compute_measures(zsl, mine, sides["ft"])),
        (second, compute_measures(zsl, sides["icl"], other)),
    ):
        control = next(iter(measures)).split("/")[1]
        names = {name for name in expected if "." not in name} - {"sim_am_before"}
        assert set(measures) == {f"control/{control}/{name}" for name in names}
        for name in names:
            value = measures[f"control/{control}/{name}"]
            whole = expected[name].nanmean(dim=2) if expected[name].dim() > 2 else expected[name]
            torch.testing.assert_close(value, whole, rtol=0, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(answers["other_demonstrations"], tuned.log_probabilities, rtol=0, atol=0)


def test_ceilings_score_higher_than_floors() -> None:
    controls = run_all().result.controls

    for name in ("sim_aou_raw", "sim_am_delta", "direct_update"):
        for ceiling in ("icl_order", "ft_order", "batch_sequential"):
            assert (controls[ceiling][name].mean or 0) > 0.5, (ceiling, name)
        for floor in ("random", "random_update", "position_shift"):
            assert abs(controls[floor][name].mean or 0) < 0.4, (floor, name)


def test_a_smaller_rate_moves_the_model_less() -> None:
    slow, fast = run_all().result.rate_sweep

    assert slow.update_norm.mean is not None
    assert fast.update_norm.mean is not None
    assert 0 < slow.update_norm.mean < fast.update_norm.mean
    # At the rate chosen, the sweep is the comparison.
    (chosen,) = {trial.learning_rate for trial in run_all().result.trials if trial.learner == "ft" and trial.chosen}
    result = run_all().result
    point = next(point for point in result.rate_sweep if point.learning_rate == chosen)
    assert point.accuracy.mean == result.accuracy["ft"].mean
    for name, estimate in point.similarity.items():
        assert estimate.mean == pytest.approx(result.similarity[name].mean, abs=1e-9), name


# What no control may touch.


def test_the_trained_model_is_as_before_bit_for_bit() -> None:
    lm = LanguageModel.wrap(tiny_model("gpt2", dtype=torch.float64), tiny_tokenizer(), "tiny")
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}

    compare(small_config(controls=("all",), rates=RATES, seeds=(1,)), lm=lm, task=small_task())

    after = lm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_controls_do_not_change_the_main_numbers() -> None:
    bare, full = run(controls=("none",)), run_all()

    for mine, theirs in zip(bare.records, full.records, strict=True):
        assert mine.rows == theirs.rows
        for learner, table in mine.log_probabilities.items():
            torch.testing.assert_close(theirs.log_probabilities[learner], table, rtol=0, atol=1e-10)
        own = {name for name in theirs.measures if not name.startswith("control/")}
        assert own == mine.measures.keys()
        for name, value in mine.measures.items():
            # All eight queries are controlled, so that groups are the same: so are the numbers.
            torch.testing.assert_close(theirs.measures[name], value, rtol=0, atol=1e-10, msg=name, equal_nan=True)
    assert bare.result.controls == bare.result.calibrated == {}
    assert bare.result.rate_sweep == []
    assert {name: each.mean for name, each in bare.result.similarity.items()} == {
        name: pytest.approx(each.mean, abs=1e-9) for name, each in full.result.similarity.items()
    }
    assert bare.result.tests == full.result.tests


def test_controls_read_so_many_queries_and_no_more() -> None:
    few = run(controls=("random", "icl_order", "ft_order", "untrained"), limit=None, control_limit=5)
    chosen = sorted(random.Random(1).sample(range(N_REPORT), 5))

    for record in few.records:
        tables = {name: value for name, value in record.measures.items() if name.startswith("control/")}
        for name, value in {**tables, **record.control_answers}.items():
            # kendall_demo and changes may be NaN by themselves, but none may be there unread.
            there = ~value.reshape(N_REPORT, -1).isnan().all(1)
            assert set(there.nonzero().flatten().tolist()) <= set(chosen), name
            if "delta" not in name:
                assert there.nonzero().flatten().tolist() == chosen, name
        for name, value in record.measures.items():
            if name in ("sim_aou", "agreement", "relaxation"):
                assert value.isfinite().all(), name
    result = few.result
    assert result.controls["icl_order"]["sim_aou"].n == 2 * 5
    assert result.controls["untrained"]["accuracy"].n == 2 * 5
    assert result.similarity["sim_aou"].n == 2 * N_REPORT
    assert result.calibrated["sim_aou"].n == 2 * 5
    assert run(controls=("random",), limit=None, control_limit=None).result.controls["random"]["sim_aou"].n == (
        2 * N_REPORT
    )


def test_a_controls_scores_do_not_depend_on_which_other_queries_it_reads() -> None:
    few, whole = (
        run(controls=("icl_order", "shuffled_labels"), limit=None, control_limit=limit) for limit in (5, None)
    )

    for mine, theirs in zip(few.records, whole.records, strict=True):
        for name, value in mine.measures.items():
            there = ~value.isnan()
            tolerance = 5e-3 if name.endswith("kendall") else 1e-7
            torch.testing.assert_close(value[there], theirs.measures[name][there], rtol=0, atol=tolerance, msg=name)


def test_the_same_settings_give_the_same_numbers_controls_included() -> None:
    again = compare(small_config(rates=RATES, controls=("all",)), lm=small_lm(), task=small_task()).result

    assert json.dumps(numbers(again)) == json.dumps(numbers(run_all().result))


@pytest.mark.parametrize("changes", [{"k": 0}, {"learners": ("zsl", "icl")}, {"learners": ("icl", "ft")}])
def test_without_both_sides_and_zero_shot_there_is_nothing_to_control(changes: dict[str, Any]) -> None:
    result = run(controls=("all",), **changes).result

    assert result.controls == {}
    assert result.calibrated == {}


@pytest.mark.parametrize("family", ["llama", "xglm"])
def test_controls_run_on_families_read_in_other_ways(family: str) -> None:
    lm = LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family)
    config = small_config(controls=("all",), seeds=(1,), limit=4)

    result = compare(config, lm=lm, task=small_task()).result

    assert set(result.controls) == {*ALL, "batch_sequential"} - {"rates"}


def test_multiple_choice_has_controls_too(tmp_path: Path) -> None:
    rows = [
        {"text": each, "choices": ["the bad one", "works everywhere", "nothing"][: 2 + i % 2], "label": i % 2}
        for i, (each, _) in enumerate(sentences())
    ]
    task = build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), TaskOptions(choices="choices"))
    config = small_config(controls=("all",), seeds=(1,), limit=6)

    result = compare(config, lm=small_lm(), task=task).result

    # Here all rows with as many choices have the same answer, so there is nothing to shuffle.
    assert set(result.controls) == {*ALL, "batch_sequential"} - {"rates", "shuffled_labels"}
    assert any("Control shuffled_labels was left out for seed 1" in warning for warning in result.warnings)
    assert result.controls["icl_order"]["accuracy"].n == 6


# Rates.


def refusing(limit: float, sequences: tuple[tuple[int, ...], ...]) -> Callable[..., Any]:
    """Finetuning that diverges above a rate on all demonstrations but these."""

    class Stubborn:
        def __init__(self, opening: tuple[int, ...], rate: float, *args: Any, **kwargs: Any) -> None:
            self.inner = Finetuned(opening, rate, *args, **kwargs)

        def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
            if demonstrations.sequences != sequences and self.inner.learning_rate > limit:
                raise TrainingError("diverged")
            return self.inner.adapt(lm, demonstrations)

    return Stubborn


@pytest.mark.parametrize("name", ["ft_order", "other_demonstrations"])
def test_a_control_that_shares_finetunings_rate_falls_back_where_it_diverges(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seed_setup() as setup:
        monkeypatch.setattr(module, "Finetuned", refusing(1e-3, setup.encoded.sequences))
        control = setup.stand_in(name)
        (trained_on,) = setup.trained_on
        expected = Finetuned(setup.experiment.encoder.opening, 1e-3).adapt(setup.experiment.lm, trained_on)

    for mine, theirs in zip(control.adapted.deltas, expected.deltas, strict=True):
        assert torch.equal(mine.delta, theirs.delta)


@pytest.mark.parametrize("name", ["ft_order", "other_demonstrations"])
def test_a_control_that_fell_back_to_a_lower_rate_has_a_note(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with seed_setup() as setup:
        monkeypatch.setattr(module, "Finetuned", refusing(1e-3, setup.encoded.sequences))
        prepared = setup.make(name)

    # A control trained at another rate than FT is not the one requested.
    messages = [*prepared.notes, *(f"{trial.learning_rate:g} {trial.status}" for trial in prepared.trials)]
    assert any("0.01" in each for each in messages)


def test_an_untrained_model_that_diverges_at_finetunings_rate_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with seed_setup() as setup:
        monkeypatch.setattr(module, "Finetuned", refusing(1e-3, ()))
        (control,) = setup.make("untrained").controls
        assert isinstance(control, UntrainedComparison)
        lm = control.experiment.lm
        expected = Finetuned(setup.experiment.encoder.opening, 1e-3).adapt(lm, setup.encoded)

    for mine, theirs in zip(control.ft.deltas, expected.deltas, strict=True):
        assert torch.equal(mine.delta, theirs.delta)


def test_the_first_seeds_rates_serve_controls_of_all_seeds() -> None:
    records = run_all().records

    for name in ("batch", "lcgd", "value_one_layer", "mlp"):
        assert records[0].rates[name] == records[1].rates[name]
        searched = [[t for t in record.trials if t.learner == name and t.validation_accuracy is not None]
                    for record in records]  # fmt: skip
        assert [len(each) for each in searched] == [len(RATES), 0]


# Labels of other lengths.


@cache
def two_lengths() -> Task:
    """Two labels, one of them many tokens long."""
    rows = [{"text": text, "label": label} for text, label in sentences()]
    words = TaskOptions(label_words=("ok", "an unbelievably long label"))
    return build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), words)


def tight(task: Task, k: int, rule: str) -> tuple[int, int]:
    """The length of the longest sequence under the true labels, and under another rule."""
    lm = small_lm()
    encoder = Encoder(lm, task)
    experiment = Experiment.of(small_config(k=k, balanced=False, limit=None, selection_limit=None), lm, task)
    own = max(
        len(query.prompt) + max(map(len, query.answers))
        for query in (*experiment.queries, *experiment.selection_queries)
    )
    demonstrations = experiment.draw(1).demonstrations
    other = demonstrations.relabelled(task, rule)  # type: ignore[arg-type]
    first, second = (len(encoder.demonstrations(each).prefix) + own for each in (demonstrations, other))
    return first, second


def test_wrong_labels_of_more_tokens_still_fit_the_models_context() -> None:
    k = next(k for k in range(4, 13) if tight(two_lengths(), k, "random")[1] > tight(two_lengths(), k, "random")[0])
    longest, longer = tight(two_lengths(), k, "random")
    model = tiny_model("gpt2", dtype=torch.float64, n_positions=longest)
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "tight")
    settings = {"k": k, "balanced": False, "limit": None, "selection_limit": None, "seeds": (1,)}
    assert longer > longest

    with warnings.catch_warnings():
        # Fewer demonstrations for everybody are one way out.
        warnings.filterwarnings("ignore", r"\d+ demonstrations take")
        result = compare(small_config(controls=("random_labels",), **settings), lm=lm, task=two_lengths()).result

    assert math.isfinite(result.controls["random_labels"]["sim_aou_raw"].mean or math.nan)
