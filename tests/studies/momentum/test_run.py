"""Arms of a seed differ in how they attend alone, and each number is the one that the models on disk give."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats

from dualform.errors import ConfigError, DualformError, ModelError, TaskError, TrainingError
from dualform.lab.losses import LossRecord, read_losses
from dualform.lab.recipe import load_recipe
from dualform.models.editing.convolution import apply_convolution
from dualform.models.editing.linear_attention import apply_linear_attention
from dualform.models.editing.momentum import momentum_of
from dualform.models.loading.load import load_model
from dualform.models.reading.encoding import Encoder
from dualform.progress import SilentProgress
from dualform.result import Result
from dualform.runs.store import RunFolder
from dualform.studies.momentum.config import Arm, MomentumConfig, momentum_config
from dualform.studies.momentum.run import MomentumStudy, compare_momentum, read_texts, train_arm
from dualform.studies.momentum.summary import momentum_table
from dualform.studies.momentum.words import momentum_verdict
from dualform.studies.pieces import Piece
from dualform.studies.seed_statistics import over_seeds, paired_difference
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.sources import load_task
from tests.lab.setting import PulledPlugError, sentences
from tests.models.reference import naive_scores
from tests.studies.momentum_setting import (
    LENGTH,
    RECIPE,
    STEPS,
    arm,
    loss_by_hand,
    numbers,
    report_of,
    small_momentum,
    write_task,
    write_texts,
)
from tests.studies.small import MemoryStore, RecordedProgress, write_csv

TOKENS = 400
"""Of test text at each length."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def study_config(texts: dict[str, Any], letters: str) -> MomentumConfig:
    """What `whole` ran."""
    controls = ("convolution", "learned", "heavy-ball", "linear-momentum")
    return small_momentum(texts, controls=controls, tasks=(letters,), k=1, limit=6, test_tokens=TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(study_config: MomentumConfig, folder: Path) -> MomentumStudy:
    """One study that many tests read."""
    return compare_momentum(study_config, folder)


def runs_in(folder: Path, name: str) -> Path:
    """Where a run's checkpoints and losses are."""
    (result,) = folder.glob(f"training-*/{name.replace(' ', '-')}")
    return result


def losses_of(folder: Path, arm: str, seed: int) -> tuple[LossRecord, ...]:
    return read_losses(runs_in(folder, f"{arm}-seed-{seed}") / "losses.jsonl")


def on_disk(study_config: MomentumConfig, folder: Path, name: str, seed: int) -> Any:
    """A trained model, from its last checkpoint."""
    checkpoint = runs_in(folder, f"{name}-seed-{seed}") / f"checkpoint-{STEPS}"
    if name in ("convolution", "heavy-ball 0.3"):
        # Configs do not tell of these.
        model = study_config.recipe_of(seed).build()
        if name == "convolution":
            apply_convolution(model)
        else:
            apply_linear_attention(model, "heavy-ball", 0.3)
        model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
        return model.eval()
    return load_model(str(checkpoint), device="cpu").model


# Twins.


def test_arms_of_a_seed_begin_alike_and_read_the_same(texts: dict[str, Any], tmp_path: Path) -> None:
    compare_momentum(small_momentum(texts, etas=(1e-9, 0.3)), tmp_path)
    for seed in (1, 2):
        vanilla, hardly = (losses_of(tmp_path, name, seed) for name in ("vanilla", "momentum 1e-09"))
        assert len(vanilla) == STEPS
        for each, other in zip(vanilla, hardly, strict=True):
            # So little momentum moves nothing but the last digits, step after step.
            assert other.loss == pytest.approx(each.loss, rel=1e-4)
            assert other.gradient_norm == pytest.approx(each.gradient_norm, rel=1e-3)
        assert losses_of(tmp_path, "momentum 0.3", seed)[0].loss != pytest.approx(vanilla[0].loss, rel=1e-4)
    first, second = (losses_of(tmp_path, "vanilla", seed)[0] for seed in (1, 2))
    assert first.loss != pytest.approx(second.loss, rel=1e-4)


def test_arms_are_vanilla_the_etas_and_the_controls_each_behind_its_baseline(whole: MomentumStudy) -> None:
    result = [(each.name, each.kind, each.eta, each.baseline) for each in report_of(whole).arms]
    assert result == [
        ("vanilla", "vanilla", None, None),
        ("momentum 0.3", "momentum", 0.3, "vanilla"),
        ("convolution", "convolution", None, "vanilla"),
        ("learned 0.3", "learned", 0.3, "vanilla"),
        ("linear", "linear", None, None),
        ("heavy-ball 0.3", "heavy-ball", 0.3, "linear"),
        ("linear-momentum 0.3", "linear-momentum", 0.3, "linear"),
    ]
    layers, heads, d_head, taps = 2, 4, 16, 3
    vanilla = arm(whole, "vanilla").parameters
    more = {each.name: each.parameters - vanilla for each in report_of(whole).arms}
    assert more == dict.fromkeys(more, 0) | {
        "convolution": layers * heads * d_head * taps,
        "learned 0.3": layers * heads,
    }


def test_etas_that_differ_in_a_late_digit_are_two_arms() -> None:
    assert Arm("momentum", 0.1234567).name != Arm("momentum", 0.12345671).name
    assert Arm("momentum", 0.3).name == "momentum 0.3"


# Numbers.


@pytest.mark.parametrize("name", ["vanilla", "momentum 0.3", "learned 0.3", "convolution", "heavy-ball 0.3"])
def test_perplexities_are_those_of_the_models_on_disk(
    name: str, whole: MomentumStudy, study_config: MomentumConfig, folder: Path
) -> None:
    models = [on_disk(study_config, folder, name, seed) for seed in (1, 2)]
    assert (momentum_of(models[0]) is not None) == (name in ("momentum 0.3", "learned 0.3"))
    assert list(arm(whole, name).perplexity) == ["4", "8", "16"]
    for length, result in arm(whole, name).perplexity.items():
        losses = [loss_by_hand(each, folder / "corpus" / "test.bin", int(length), TOKENS) for each in models]
        expected = over_seeds([math.exp(loss) for loss in losses])
        assert result.mean == pytest.approx(expected.mean, rel=1e-5)
        assert result.ci95 == pytest.approx(expected.ci95, rel=1e-2)
        assert result.n == 2
    # Trained: better than guessing among all tokens.
    assert (arm(whole, name).perplexity["16"].mean or math.inf) < 0.5 * RECIPE["vocab_size"]


def test_differences_are_those_of_losses_seed_by_seed(whole: MomentumStudy) -> None:
    for each in report_of(whole).arms:
        if each.baseline is None:
            assert each.difference == {}
            continue
        base = arm(whole, each.baseline)
        for length, result in each.difference.items():
            own, baseline = (
                [run.about["losses"][length] for (each, _), run in whole.runs.items() if each.name == name]
                for name in (each.name, base.name)
            )
            assert result == paired_difference((1, 2), own, baseline)
            low, high = stats.t.interval(
                0.95, 1, loc=result.mean, scale=stats.sem([a - b for a, b in zip(own, baseline, strict=True)])
            )
            assert result.ci95 == pytest.approx((low, high))
            assert result.p == pytest.approx(stats.ttest_rel(own, baseline).pvalue)
            assert result.p_signs in (0.5, 1.0)


def test_the_curve_is_the_mean_validation_loss(whole: MomentumStudy, folder: Path) -> None:
    for each in report_of(whole).arms:
        records = [losses_of(folder, each.name, seed) for seed in (1, 2)]
        points = [(two[0].tokens, [each.validation for each in two]) for two in zip(*records, strict=True)]
        expected = [(tokens, sum(both) / 2) for tokens, both in points if None not in both]
        assert [(point.tokens, point.loss) for point in each.curve] == [
            (n, pytest.approx(loss)) for n, loss in expected
        ]
        assert [n for n, _ in expected] == [128 * 3, 128 * 6]


def test_a_learned_eta_is_reported_for_each_layer(
    whole: MomentumStudy, study_config: MomentumConfig, folder: Path
) -> None:
    by_seed = []
    for seed in (1, 2):
        state = load_file(runs_in(folder, f"learned 0.3-seed-{seed}") / f"checkpoint-{STEPS}" / "model.safetensors")
        names = [f"model.layers.{layer}.self_attn.dualform_momentum.logit" for layer in (0, 1)]
        by_seed.append([float(state[name].sigmoid().mean()) for name in names])
    expected = [sum(layer) / 2 for layer in zip(*by_seed, strict=True)]
    assert arm(whole, "learned 0.3").learned_eta == pytest.approx(expected)
    assert all(eta != pytest.approx(0.3, abs=1e-6) for eta in expected)
    assert arm(whole, "momentum 0.3").learned_eta == []


def test_steps_are_timed_against_the_baselines(whole: MomentumStudy) -> None:
    for each in report_of(whole).arms:
        assert (each.step_ratio is None) == (each.baseline is None)
        assert each.step_ratio is None or 0.2 < each.step_ratio < 20


# Tasks.


@pytest.mark.parametrize("name", ["vanilla", "momentum 0.3"])
def test_tasks_are_asked_in_context(
    name: str, whole: MomentumStudy, study_config: MomentumConfig, folder: Path, letters: str
) -> None:
    task = load_task(letters)
    rights = []
    for seed in (1, 2):
        checkpoint = runs_in(folder, f"{name}-seed-{seed}") / f"checkpoint-{STEPS}"
        lm = load_model(str(checkpoint), device="cpu")
        encoder = Encoder(lm, task)
        prefix = encoder.demonstrations(draw_demonstrations(task, 1, seed, balanced=True)).prefix
        assert len(prefix) > 1
        (run,) = [run for (each, of), run in whole.runs.items() if (each.name, of) == (name, seed)]
        rows = [
            row for row in momentum_table(study_config, whole.runs, whole.tasks).to_pylist() if row["task"] is not None
        ]
        examples = {example.row: example for example in task.split(task.report_split)}
        queries = [row for row in rows if (row["arm"], row["seed"]) == (name, seed)]
        assert len(queries) == 6
        right = []
        for row, answers in zip(queries, run.answers[letters], strict=True):
            query = encoder.query(examples[row["query"]])
            expected = naive_scores(lm.model, prefix, query).double()
            torch.testing.assert_close(answers, expected, atol=1e-5, rtol=1e-5)
            assert row["prediction"] == int(answers.argmax())
            assert row["label"] == examples[row["query"]].label
            right.append(row["prediction"] == row["label"])
        rights.append(sum(right) / 6)
    (score,) = arm(whole, name).tasks
    assert (score.task, score.k) == (letters, 1)
    assert score.accuracy.mean == pytest.approx(sum(rights) / 2)
    assert score.accuracy.n == 12
    if name == "vanilla":
        assert score.difference is None
    else:
        (base,) = arm(whole, "vanilla").tasks
        assert score.difference is not None
        assert score.difference.mean == pytest.approx((score.accuracy.mean or 0) - (base.accuracy.mean or 0))


def test_chance_is_the_most_frequent_answer(whole: MomentumStudy, study_config: MomentumConfig) -> None:
    (score,) = arm(whole, "linear").tasks
    (answers,) = [run for (each, seed), run in whole.runs.items() if (each.name, seed) == ("linear", 1)]
    rows = momentum_table(study_config, whole.runs, whole.tasks).to_pylist()
    labels = [row["label"] for row in rows if (row["arm"], row["seed"]) == ("linear", 1) and row["task"] is not None]
    assert len(answers.answers[score.task]) == len(labels)
    assert score.chance == max(labels.count(0), labels.count(1)) / len(labels)


def test_what_does_not_fit_the_training_length_is_reported(texts: dict[str, Any], letters: str, tmp_path: Path) -> None:
    reviews = str(write_csv(tmp_path / "reviews.csv", "text", "label"))
    config = small_momentum(texts, etas=(), seeds=(1,), tasks=(letters, reviews), k=9, limit=4)
    study = compare_momentum(config, tmp_path / "run")
    (score,) = arm(study, "vanilla").tasks
    assert score.task == letters
    assert 0 < score.k < 9
    notes = study.result.warnings
    assert f"{letters}: {score.k} of 9 demonstrations fit the training length of {LENGTH}." in notes
    (note,) = [note for note in notes if note.startswith(reviews)]
    assert f"{reviews} was left out: a query takes" in note
    assert note.endswith(f"but the context holds {LENGTH}, opening tokens included. Train with a larger length.")
    assert "One seed has no interval: train several, with --seeds 1..5." in notes


def test_few_seeds_are_a_warning(whole: MomentumStudy) -> None:
    assert whole.result.warnings == [
        "2 seeds: Student's intervals over so few seeds are wide and assume a normal distribution."
    ]


# What is left behind.


def test_a_result_follows_its_schema_and_says_where_it_comes_from(
    whole: MomentumStudy, study_config: MomentumConfig
) -> None:
    result = whole.result
    assert Result.from_json(result.to_json()) == result
    assert result.study == "momentum"
    assert MomentumConfig(**result.config) == study_config
    assert result.environment["device"] == "cpu"
    assert result.model["recipe"]["length"] == LENGTH
    assert "seed" not in result.model["recipe"]
    assert (report_of(whole).tokens, report_of(whole).length) == (128 * STEPS, LENGTH)
    assert momentum_verdict(result)


def test_the_table_has_every_loss_and_every_answer(whole: MomentumStudy, study_config: MomentumConfig) -> None:
    rows = momentum_table(study_config, whole.runs, whole.tasks).to_pylist()
    assert len(rows) == 7 * 2 * (3 + 6)
    for row in rows:
        assert (row["length"] is None) == (row["loss"] is None) == (row["query"] is not None)
    result = [row["loss"] for row in rows if (row["arm"], row["length"]) == ("learned 0.3", 16)]
    assert arm(whole, "learned 0.3").perplexity["16"].mean == pytest.approx(sum(map(math.exp, result)) / 2)


# Interruption.


class StopOn:
    """A bar that breaks off when it receives certain words."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.messages: list[str] = []

    def start(self, total: float) -> None:
        pass

    def advance(self, amount: float, doing: str) -> None:
        self.messages.append(doing)
        if self.words in doing:
            raise PulledPlugError


@pytest.fixture(scope="module")
def uninterrupted(texts: dict[str, Any], letters: str, tmp_path_factory: pytest.TempPathFactory) -> MomentumStudy:
    return compare_momentum(small_momentum(texts, tasks=(letters,), k=1, limit=4), tmp_path_factory.mktemp("run"))


def same(first: MomentumStudy, other: MomentumStudy) -> bool:
    """Bit for bit, but for times."""
    assert numbers(first.result) == numbers(other.result)
    assert first.runs.keys() == other.runs.keys()
    for key, run in first.runs.items():
        assert all(torch.equal(table, other.runs[key].answers[name]) for name, table in run.answers.items())
    return True


def test_a_study_that_is_stopped_within_a_run_goes_on(
    texts: dict[str, Any], letters: str, uninterrupted: MomentumStudy, tmp_path: Path
) -> None:
    config = small_momentum(texts, tasks=(letters,), k=1, limit=4)
    store = RunFolder(tmp_path / "run", config)
    with pytest.raises(PulledPlugError):
        compare_momentum(config, store.path, pieces=store, progress=StopOn("momentum 0.3, seed 1: step 5/6"))
    (piece,) = store.path.glob("cells-*/*")
    assert piece.name.startswith("vanilla-seed-1")
    progress = StopOn("nothing")
    study = compare_momentum(config, store.path, pieces=RunFolder(tmp_path / "run", config), progress=progress)
    assert "vanilla, seed 1 was already finished" in progress.messages
    # From the checkpoint before, and not from the beginning.
    assert "momentum 0.3, seed 1: step 4/6, from the checkpoint" in progress.messages
    assert same(study, uninterrupted)


def test_a_study_that_is_stopped_between_runs_goes_on(
    texts: dict[str, Any], letters: str, uninterrupted: MomentumStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_momentum(texts, tasks=(letters,), k=1, limit=4)
    kept = MemoryStore()
    with monkeypatch.context() as patch:
        patch.setattr(kept, "put", stopping(kept, 3))
        with pytest.raises(KeyboardInterrupt):
            compare_momentum(config, tmp_path, pieces=kept)
    assert kept.put_names == ["vanilla, seed 1", "momentum 0.3, seed 1", "vanilla, seed 2"]
    progress = StopOn("nothing")
    study = compare_momentum(config, tmp_path, pieces=kept, progress=progress)
    # It had been trained, and only what it answered was lost.
    assert "momentum 0.3, seed 2: step 6/6, from the checkpoint" in progress.messages
    assert kept.put_names[3:] == ["momentum 0.3, seed 2", "momentum 0.3, step"]
    assert same(study, uninterrupted)


def stopping(kept: MemoryStore, n: int) -> Callable[[Piece], None]:
    def put(piece: Piece) -> None:
        if len(kept.put_names) == n:
            raise KeyboardInterrupt
        MemoryStore.put(kept, piece)

    return put


def test_a_finished_study_trains_nothing_again_and_progress_adds_up(texts: dict[str, Any], tmp_path: Path) -> None:
    config, kept, bars = small_momentum(texts), MemoryStore(), (RecordedProgress(), RecordedProgress())
    first, again = (compare_momentum(config, tmp_path, pieces=kept, progress=bar) for bar in bars)
    assert len(kept.put_names) == len(set(kept.put_names)) == 5
    assert again.result.momentum == first.result.momentum
    for bar in bars:
        assert bar.total == 4 * STEPS
        assert bar.done == pytest.approx(bar.total)


def changed_text(folder: Path, config: MomentumConfig) -> MomentumConfig:
    path = Path(config.test[0])
    path.write_text(path.read_text(encoding="utf-8").replace("lantern", "ladder"), encoding="utf-8")
    return config


def changed_recipe(folder: Path, config: MomentumConfig) -> MomentumConfig:
    path = folder / "own.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("0.01", "0.02"), encoding="utf-8")
    return config


@pytest.mark.parametrize("change", [changed_text, changed_recipe])
def test_other_text_or_another_recipe_under_the_same_name_makes_other_pieces(
    change: Callable[[Path, MomentumConfig], MomentumConfig], tmp_path: Path
) -> None:
    given = write_texts(tmp_path)
    recipe = load_recipe("tiny", **RECIPE).model_dump(mode="json")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    config = small_momentum(given, recipe=str(tmp_path / "own.yaml"), etas=(0.3,), seeds=(1,), settings={})
    kept = MemoryStore()
    before = compare_momentum(config, tmp_path / "run", pieces=kept)
    n = len(kept.put_names)
    # Into the same folder, where checkpoints of the first lie.
    after = compare_momentum(change(tmp_path, config), tmp_path / "run", pieces=kept)
    assert kept.put_names[n:] == kept.put_names[:n]
    assert after.result.model["inputs"] != before.result.model["inputs"]
    fresh = compare_momentum(config, tmp_path / "fresh")
    assert numbers(after.result) == numbers(fresh.result)
    assert numbers(after.result)["momentum"] != numbers(before.result)["momentum"]


def test_a_task_that_changes_is_asked_again_and_nothing_is_trained_again(texts: dict[str, Any], tmp_path: Path) -> None:
    path, kept = write_task(tmp_path), MemoryStore()
    config = small_momentum(texts, seeds=(1,), tasks=(path,), k=1, limit=4)
    compare_momentum(config, tmp_path / "run", pieces=kept)
    n = len(kept.put_names)
    write_task(tmp_path, words=("a", "i"))
    progress = StopOn("nothing")
    after = compare_momentum(config, tmp_path / "run", pieces=kept, progress=progress)
    assert kept.put_names[n:] == ["vanilla, seed 1", "momentum 0.3, seed 1"]
    assert [doing for doing in progress.messages if "step" in doing] == [
        f"{name}, seed 1: step 6/6, from the checkpoint" for name in ("vanilla", "momentum 0.3")
    ]
    fresh = compare_momentum(config, tmp_path / "run", pieces=MemoryStore())
    assert numbers(after.result) == numbers(fresh.result)


# Mistakes.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"etas": (0.0, 0.3)}, "etas [0.0] must lie between 0 and 1; eta 0 is vanilla"),
        ({"etas": (0.3, 1.0, -2.0)}, "etas [1.0, -2.0] must lie between 0 and 1"),
        ({"etas": (float("nan"),)}, "etas [nan] must lie between 0 and 1"),
        ({"etas": (0.3, 0.3)}, "etas [0.3, 0.3] must be different"),
        ({"control_eta": 1.0}, "control_eta 1.0 must lie between 0 and 1"),
        ({"controls": ("magic",)}, "(given 'magic')"),
        ({"controls": ("linear", "linear")}, "controls ['linear', 'linear'] must be different"),
        ({"pretrained_etas": (0.0,)}, "pretrained_etas [0.0] must lie between 0 and 1"),
        ({"pretrained_etas": (0.1, 0.1)}, "pretrained_etas [0.1, 0.1] must be different"),
        ({"seeds": ()}, "seeds [] must be one or more different numbers from 0"),
        ({"seeds": (1, 1)}, "seeds [1, 1] must be one or more different numbers"),
        ({"recipe": "huge"}, "recipe 'huge' is unknown: give one of tiny, small, 124m, 350m, or a YAML file"),
        (
            {"settings": {"seed": 3, "data_seed": 4}},
            "settings may not contain data_seed, seed, which each run takes from seeds",
        ),
        ({"settings": {"name": "x"}}, "settings ['name'] are not fields of a recipe: model, vocab_size"),
        ({"settings": {"vocab_size": 100}}, "vocab_size: Input should be greater than or equal to 257 (given 100)"),
        ({"settings": {"batch_tokens": 100}}, "batch_tokens 100 must be a multiple of length 16: 96 or 112"),
        ({"corpus": ()}, "corpus: Tuple should have at least 1 item"),
        ({"device": "gpu"}, "(given 'gpu')"),
        ({"resamples": 2}, "resamples: Input should be greater than or equal to 10 (given 2)"),
    ],
)
def test_a_mistake_in_settings_is_told_in_one_message(
    changes: dict[str, Any], words: str, texts: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as error:
        small_momentum(texts, **changes)
    assert words in str(error.value)


def test_all_mistakes_are_told_together(texts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        small_momentum(texts, etas=(0.0,), control_eta=2.0, seeds=(1, 1))
    assert all(words in str(error.value) for words in ("etas [0.0]", "control_eta 2.0", "seeds [1, 1]"))


def test_zero_of_a_limit_means_none(texts: dict[str, Any]) -> None:
    assert momentum_config(**texts, limit=0).limit is None
    assert momentum_config(**texts, limit=None).limit == 200


def test_lengths_are_a_quarter_half_and_all_of_the_trained_one(texts: dict[str, Any]) -> None:
    shares = {64: (16, 32, 64), 3: (1, 3), 2: (1, 2)}
    for length, expected in shares.items():
        settings = {"length": length, "batch_tokens": 2 * length}
        assert small_momentum(texts, settings=settings).lengths() == expected


def short(folder: Path) -> str:
    path = folder / "short.txt"
    path.write_text("a few words\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"test": ("nowhere.txt",)}, ConfigError, "file nowhere.txt does not exist. Check the name"),
        ({"validation": ("nowhere.txt",)}, ConfigError, "file nowhere.txt does not exist"),
        ({"corpus": ("nowhere",)}, ConfigError, "'nowhere' is neither an existing file (.txt, "),
        ({"corpus": ("nowhere.txt", "neither.txt")}, ConfigError, "file nowhere.txt does not exist"),
        ({"test": "short"}, ConfigError, f"has no window of {LENGTH} tokens"),
        ({"validation": "short"}, ConfigError, f"has no window of {LENGTH} tokens"),
        ({"corpus": "short"}, ConfigError, "is shorter than one batch of 128"),
        ({"tasks": ("nowhere.csv",)}, TaskError, "nowhere.csv"),
        ({"tasks": "letters", "k": 50}, TaskError, "50 demonstrations were requested"),
        ({"pretrained": ("no/such/model",)}, ModelError, "no/such/model"),
    ],
)
def test_other_mistakes_are_told_before_anything_is_trained(
    changes: dict[str, Any], kind: type[DualformError], words: str, texts: dict[str, Any], letters: str, tmp_path: Path
) -> None:
    own = {"short": (short(tmp_path),), "letters": (letters,)}
    given = {name: own.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    kept = MemoryStore()
    with pytest.raises(kind) as error:
        compare_momentum(small_momentum(texts, **given), tmp_path / "run", pieces=kept)
    assert words in str(error.value)
    assert kept.pieces == {}
    assert not list((tmp_path / "run").glob("training-*/*/checkpoint-*"))


def test_missing_text_is_told_before_the_corpus_is_read(texts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt"):
        compare_momentum(small_momentum(texts, test=("nowhere.txt",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_of_a_data_set_of_the_hub_each_text_is_the_split_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder stands for it, so that no network is asked.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "prose").mkdir(parents=True)
    for seed, (name, n) in enumerate({"train": 300, "validation": 50, "test": 40}.items()):
        rows = [json.dumps({"text": text}) + "\n" for text in sentences(n, seed)]
        (tmp_path / "data" / "prose" / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    where = ("data/prose",)
    config = small_momentum({"corpus": where, "validation": where, "test": where})
    result = read_texts(config, config.recipe_of(1), tmp_path / "corpus", SilentProgress())
    assert [each.n_documents for each in (result.train, result.validation, result.test)] == [300, 50, 40]


def test_settings_come_back_from_json(study_config: MomentumConfig) -> None:
    assert MomentumConfig(**json.loads(study_config.model_dump_json())) == study_config


def test_training_that_diverges_everywhere_is_a_result_without_numbers(texts: dict[str, Any], tmp_path: Path) -> None:
    # So large numbers inside that the first loss is no number.
    model = load_recipe("tiny").model | {"rms_norm_eps": -1.0}
    config = small_momentum(texts, seeds=(1, 2), controls=(), settings={"model": model})
    study = compare_momentum(config, tmp_path)
    assert study.result.momentum is not None
    for result in study.result.momentum.arms:
        assert result.parameters > 0
        assert {estimate.n for estimate in result.perplexity.values()} == {0}
        assert all(estimate.mean is None for estimate in result.perplexity.values())
    diverged = [note for note in study.result.warnings if "diverged and is left out: step 1:" in note]
    assert len(diverged) == len(config.arms) * len(config.seeds)
    assert momentum_verdict(study.result)
    assert momentum_table(config, study.runs, study.tasks).num_rows == 0


def test_one_run_that_diverges_is_left_out_and_the_others_stand(
    texts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_momentum(texts, seeds=(1, 2, 3), controls=())
    lost = (config.arms[1], 2)

    def diverging(config: MomentumConfig, each: Arm, seed: int, *rest: Any) -> Any:
        if (each, seed) == lost:
            raise TrainingError("step 2: the loss is nan")
        return train_arm(config, each, seed, *rest)

    monkeypatch.setattr("dualform.studies.momentum.run.train_arm", diverging)
    study = compare_momentum(config, tmp_path)
    assert study.result.momentum is not None
    vanilla, other = study.result.momentum.arms[:2]
    assert {estimate.n for estimate in vanilla.perplexity.values()} == {3}
    assert {estimate.n for estimate in other.perplexity.values()} == {2}
    assert all(set(result.per_seed) == {"1", "3"} for result in other.difference.values())
    assert any(f"{lost[0].name}, seed 2 diverged" in note for note in study.result.warnings)
