"""Calibration texts, plain text and learner of a fold."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dualform.errors import ConfigError, ContextError, ModelError, TaskError
from dualform.learners.adapted import AdaptationCost, AdaptedModel, answer_log_probabilities
from dualform.learners.folded import FEWEST_TEXTS
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.studies import experiment as experiment_module
from dualform.studies import folds
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.experiment import DemonstrationSet, Experiment, digest
from dualform.studies.fold_settings import CALIBRATED, IN_WEIGHTS, FoldMethod, FoldSettings, require_weights
from dualform.studies.fold_work import fold_parts
from dualform.studies.folds import check_fold, fold_texts, make_fold, plain_passages, require_writable
from tests.studies.small import LABELS, N_TRAIN, sentences, small_experiment

K = 4
TEXTS = [text for text, _ in sentences()][:12]
PASSAGES = ["one of the year", "a cold and plain morning, and with wit and grace it went", "warm", "a story told twice"]


def small(family: str = "llama", **changes: Any) -> tuple[Experiment[ComparisonConfig], DemonstrationSet]:
    """An experiment, and the first seed's demonstrations."""
    experiment = small_experiment(family, k=K, **changes)
    return experiment, experiment.draw(1)


def settings(**changes: Any) -> FoldSettings:
    """Settings of a fold that reads no plain text."""
    return FoldSettings(**{"texts": 64, "plain": "none", **changes})


def with_rows(
    experiment: Experiment[ComparisonConfig], n: int, drawn: DemonstrationSet
) -> Experiment[ComparisonConfig]:
    """The experiment with the demonstrations and `n` other rows in its train split."""
    used = set(drawn.demonstrations.rows)
    train = experiment.task.split("train")
    others = [example for example in train if example.row not in used][:n]
    kept = (*(example for example in train if example.row in used), *others)
    task = dataclasses.replace(experiment.task, splits={**experiment.task.splits, "train": kept})
    return dataclasses.replace(experiment, task=task)


def write_lines(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def prompts(texts: tuple[Query, ...]) -> list[tuple[int, ...]]:
    return [text.prompt for text in texts]


# Calibration texts from the train split.


def test_texts_of_train_are_all_rows_but_the_demonstrations() -> None:
    experiment, drawn = small()
    texts = fold_texts(experiment, drawn, settings())

    used = {experiment.encoder.query(example).prompt for example in drawn.demonstrations.examples}
    rows = {experiment.encoder.query(example).prompt for example in experiment.task.split("train")}
    assert texts.source == "train"
    assert len(texts.texts) == len(set(prompts(texts.texts))) == N_TRAIN - K
    assert set(prompts(texts.texts)) == rows - used
    # Other demonstrations leave other texts.
    other = fold_texts(experiment, experiment.draw(2), settings())
    assert set(prompts(other.texts)) != set(prompts(texts.texts))


def test_the_requested_number_of_texts_is_drawn_by_the_demonstrations_seed() -> None:
    experiment, drawn = small()
    few, again = (fold_texts(experiment, drawn, settings(texts=9)).texts for _ in range(2))

    assert len(few) == 9
    assert few == again
    # A smaller number is the beginning of a larger one, so that the axis of numbers compares like with like.
    assert few == fold_texts(experiment, drawn, settings()).texts[:9]
    train = [experiment.encoder.query(example).prompt for example in experiment.task.split("train")]
    places = [train.index(prompt) for prompt in prompts(few)]
    assert places != sorted(places)


def test_labels_of_the_texts_change_nothing() -> None:
    experiment, drawn = small()
    used = set(drawn.demonstrations.rows)
    turned = tuple(
        example if example.row in used else dataclasses.replace(example, label=1 - example.label)
        for example in experiment.task.split("train")
    )
    assert turned != experiment.task.split("train")
    task = dataclasses.replace(experiment.task, splits={**experiment.task.splits, "train": turned})

    straight = make_fold(experiment, drawn, settings())
    other = make_fold(dataclasses.replace(experiment, task=task), drawn, settings())

    assert straight.texts == other.texts
    assert_same_deltas(straight.adapted, other.adapted)


def test_labels_of_the_demonstrations_change_the_fold() -> None:
    experiment, drawn = small()
    turned = dataclasses.replace(drawn.demonstrations, labels=tuple(1 - label for label in drawn.demonstrations.labels))
    straight, other = (make_fold(experiment, each, settings()).adapted for each in (drawn, experiment.encode(turned)))

    assert isinstance(straight, AdaptedModel)
    assert isinstance(other, AdaptedModel)
    assert not torch.equal(straight.deltas[0].delta, other.deltas[0].delta)


def assert_same_deltas(first: Any, second: Any) -> None:
    assert len(first.deltas) == len(second.deltas) > 0
    for a, b in zip(first.deltas, second.deltas, strict=True):
        assert a.parameter == b.parameter
        assert torch.equal(a.delta, b.delta)


def test_rows_of_train_that_do_not_fit_behind_the_demonstrations_are_left_out() -> None:
    experiment, drawn = small()
    widths = sorted(query.width() for query in fold_texts(experiment, drawn, settings()).texts)
    narrow = dataclasses.replace(experiment, context=len(drawn.encoded.prefix) + widths[len(widths) // 2])

    texts = fold_texts(narrow, drawn, settings())

    assert FEWEST_TEXTS <= len(texts.texts) < len(widths)
    assert sorted(query.width() for query in texts.texts) == widths[: len(texts.texts)]
    # Texts that do not fit are replaced by others.
    assert len(fold_texts(narrow, drawn, settings(texts=FEWEST_TEXTS)).texts) == FEWEST_TEXTS


@pytest.mark.parametrize(("n", "source"), [(FEWEST_TEXTS, "train"), (FEWEST_TEXTS - 1, "generated")])
def test_the_model_writes_the_texts_where_train_has_too_few(
    monkeypatch: pytest.MonkeyPatch, n: int, source: str
) -> None:
    experiment, drawn = small()
    written = tuple(experiment.encoder.query(example).prompt for example in experiment.examples)
    calls: list[Any] = []

    def write(lm: Any, task: Any, encoder: Any, demonstrations: Any, n: int, *, seed: int) -> Any:
        calls.append((demonstrations, n, seed))
        return written

    monkeypatch.setattr(folds, "generate_texts", write)
    texts = fold_texts(with_rows(experiment, n, drawn), drawn, settings(texts=8))

    assert texts.source == source
    assert calls == ([(drawn.encoded, 8, 1)] if source == "generated" else [])
    if source == "generated":
        assert prompts(texts.texts) == list(written)
        # They are queries with the task's answers.
        assert texts.texts[0].answers == experiment.queries[0].answers


def test_a_model_that_writes_nothing_usable_is_an_error_with_a_remedy() -> None:
    experiment, drawn = small()
    with pytest.raises(ModelError, match=r"wrote \d+ of 8 usable texts.*--calibration"):
        fold_texts(experiment, drawn, settings(calibration="generated", texts=8))


def test_generated_texts_that_do_not_fit_the_requested_context_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment, drawn = small()
    written = tuple(experiment.encoder.query(example).prompt for example in experiment.task.split("train"))
    monkeypatch.setattr(folds, "generate_texts", lambda *arguments, **more: written)
    widths = sorted(experiment.encoder.unlabelled(prompt).width() for prompt in written)
    narrow = dataclasses.replace(experiment, context=len(drawn.encoded.prefix) + widths[len(widths) // 2])

    texts = fold_texts(narrow, drawn, settings(calibration="generated"))
    assert FEWEST_TEXTS <= len(texts.texts) < len(written)
    assert max(query.width() for query in texts.texts) == widths[len(widths) // 2]
    none = dataclasses.replace(experiment, context=len(drawn.encoded.prefix) + widths[0] - 1)
    with pytest.raises(ContextError, match=r"only 0 of 34 generated texts fit behind .* Fold fewer \(-k\)"):
        fold_texts(none, drawn, settings(calibration="generated"))


def test_the_time_to_get_texts_is_part_of_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, drawn = small()
    clock = iter((100.0, 107.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock, 107.0))
    # The learner's own time stands still.
    assert make_fold(experiment, drawn, settings(texts=8)).adapted.cost.seconds == pytest.approx(7.0)


def test_what_the_model_writes_is_part_of_the_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    experiment, drawn = small()
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    prompts_written = tuple(experiment.encoder.query(example).prompt for example in experiment.task.split("train"))[:10]
    monkeypatch.setattr(folds, "generate_texts", lambda *arguments, **more: prompts_written)
    given = FoldSettings(texts=10, calibration="generated", plain_texts=2, plain_length=8)

    adapted = make_fold(experiment, drawn, given).adapted
    monkeypatch.setattr(folds, "cost_of_writing", lambda *arguments: AdaptationCost(0.0, 0, 0.0))
    unwritten = make_fold(experiment, drawn, given).adapted

    assert isinstance(adapted, AdaptedModel)
    assert adapted.cost.tokens - unwritten.cost.tokens == sum(map(len, prompts_written)) + 2 * 8
    lm = experiment.lm
    by_hand = 2 * lm.shape.forward(8, prefix=len(experiment.encoder.opening), scored=8)
    for prompt in prompts_written:
        by_hand += lm.shape.forward(len(prompt), prefix=len(drawn.encoded.prefix), scored=len(prompt))
    assert adapted.cost.flops - unwritten.cost.flops == pytest.approx(by_hand)


# Checks before any work.


def test_mistakes_in_files_and_layers_are_errors_before_any_work(tmp_path: Path) -> None:
    experiment, _ = small()
    few = write_lines(tmp_path / "few.txt", TEXTS[: FEWEST_TEXTS - 1])
    with pytest.raises(ConfigError, match=r"few.txt holds 7 texts, which are too few"):
        check_fold(experiment, settings(calibration=few))
    for name in ("calibration", "plain"):
        with pytest.raises(TaskError, match=r"none.txt does not exist"):
            check_fold(experiment, settings(**{name: str(tmp_path / "none.txt")}))
    with pytest.raises(ConfigError, match=r"layers \[9\] do not exist: .* has layers 0 to 1"):
        check_fold(experiment, settings(layers=(0, 9)))
    # Files that the method does not read are not checked.
    assert check_fold(experiment, settings(method="mezo", calibration=few)) == ()


def test_the_contents_of_files_are_returned_and_nothing_without_files(tmp_path: Path) -> None:
    experiment, _ = small()
    assert check_fold(experiment, settings()) == ()
    given = settings(
        calibration=write_lines(tmp_path / "own.txt", TEXTS), plain=write_lines(tmp_path / "prose.txt", PASSAGES)
    )
    before = check_fold(experiment, given)
    assert check_fold(experiment, given) == before
    write_lines(tmp_path / "own.txt", [*TEXTS[:-1], "something else"])
    after = check_fold(experiment, given)
    assert after[0] != before[0]
    assert after[1] == before[1]
    write_lines(tmp_path / "prose.txt", PASSAGES[1:])
    assert check_fold(experiment, given)[1] != before[1]


def test_a_bias_that_checkpoints_cannot_hold_is_an_error_before_any_work() -> None:
    experiment, _ = small("phi3")
    with pytest.raises(ModelError, match=r"thought-vector needs a bias .* Phi3ForCausalLM cannot hold .*--as lora"):
        require_writable(experiment.lm, "thought-vector", as_checkpoint=True)
    require_writable(experiment.lm, "thought-vector", as_checkpoint=False)
    require_writable(experiment.lm, "ridge", as_checkpoint=True)
    require_writable(small("llama")[0].lm, "thought-vector", as_checkpoint=True)


# Calibration texts from a file.


def test_texts_come_from_a_file_with_one_a_line_or_from_a_table_whose_labels_mean_nothing(tmp_path: Path) -> None:
    experiment, drawn = small()
    lines = write_lines(tmp_path / "more.txt", [TEXTS[0], "", *TEXTS[1:]])
    with (tmp_path / "more.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "text"), *(("no label of this task", text) for text in TEXTS)])

    from_lines = fold_texts(experiment, drawn, settings(calibration=lines))
    from_table = fold_texts(experiment, drawn, settings(calibration=str(tmp_path / "more.csv")))

    assert (from_lines.source, from_table.source) == ("more.txt", "more.csv")
    assert from_lines.texts == from_table.texts
    assert len(from_lines.texts) == len(TEXTS)
    expected = experiment.encoder.text(dataclasses.replace(experiment.examples[0], fields={"text": TEXTS[1]}))
    assert from_lines.texts[1] == expected
    assert len(fold_texts(experiment, drawn, settings(calibration=lines, texts=9)).texts) == 9


def test_a_text_of_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    experiment, drawn = small()
    lines = write_lines(tmp_path / "more.txt", [*TEXTS[:4], "long " * 400, *TEXTS[4:]])

    with pytest.raises(ContextError) as error:
        fold_texts(experiment, drawn, settings(calibration=lines))
    n = len(drawn.encoded.prefix)
    for words in (f"text 5 of {lines} does not fit", f"take {n} of {experiment.context} tokens", "Shorten", "(-k)"):
        assert words in str(error.value)
    # Beyond the requested number it does not matter.
    lines = write_lines(tmp_path / "later.txt", [*TEXTS, "long " * 400])
    assert len(fold_texts(experiment, drawn, settings(calibration=lines, texts=len(TEXTS))).texts) == len(TEXTS)


def test_a_file_of_too_few_texts_is_named(tmp_path: Path) -> None:
    experiment, drawn = small()
    lines = write_lines(tmp_path / "few.txt", TEXTS[: FEWEST_TEXTS - 1])

    with pytest.raises(ConfigError, match=rf"few.txt holds {FEWEST_TEXTS - 1} texts, .* at least {FEWEST_TEXTS}"):
        fold_texts(experiment, drawn, settings(calibration=lines))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "\n  \n", "empty.txt contains no text. Write one text on each line"),
        ("missing.txt", None, "missing.txt does not exist. Check the path"),
        ("other.csv", "body,topic\na,b\n", "other.csv has no column 'text'"),
    ],
)
def test_a_file_without_texts_is_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    experiment, drawn = small()
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")

    with pytest.raises(TaskError) as error:
        fold_texts(experiment, drawn, settings(calibration=str(tmp_path / name)))
    assert words in str(error.value)


# Plain text.


def test_plain_text_of_a_file_is_its_longest_lines_in_their_order_cut_to_length(tmp_path: Path) -> None:
    experiment, drawn = small()
    file = write_lines(tmp_path / "prose.txt", PASSAGES)
    tokens = [tuple(experiment.lm.tokenizer(line, add_special_tokens=False)["input_ids"]) for line in PASSAGES]
    assert len(tokens[1]) > 8

    texts = fold_texts(experiment, drawn, settings(plain=file, plain_texts=2, plain_length=8))
    assert texts.plain_source == "prose.txt"
    longest = sorted(sorted(range(4), key=lambda i: -len(tokens[i][:8]))[:2])
    assert texts.plain == tuple(tokens[i][:8] for i in longest)
    # A line of one token has no next token to learn from.
    everything = plain_passages(experiment.encoder, Path(file), 1000)
    assert everything == tuple(line for line in tokens if len(line) > 1)


@pytest.mark.parametrize("changes", [{"plain": "none"}, {"plain": "generated", "plain_weight": 0.0}])
def test_plain_text_is_read_only_where_it_counts(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    monkeypatch.setattr(folds, "generate_plain", unwanted)
    experiment, drawn = small()
    texts = fold_texts(experiment, drawn, settings(**changes))

    assert (texts.plain, texts.plain_source) == ((), "none")


@pytest.mark.parametrize("method", [name for name in get_args(FoldMethod) if name != "ridge"])
def test_only_ridge_reads_plain_text(monkeypatch: pytest.MonkeyPatch, method: FoldMethod) -> None:
    monkeypatch.setattr(folds, "generate_plain", unwanted)
    experiment, drawn = small()
    texts = fold_texts(experiment, drawn, FoldSettings(method=method, texts=8))

    assert texts.plain_source == "none"
    assert (len(texts.texts), texts.source) == ((8, "train") if method in CALIBRATED else (0, "none"))


def unwanted(*arguments: object, **more: object) -> Any:
    raise AssertionError("no text should be generated")


def test_plain_text_is_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    experiment, drawn = small()
    given = settings(plain="generated", plain_texts=3, plain_length=8)

    first = fold_texts(experiment, drawn, given)
    assert first.plain_source == "generated"
    assert [len(text) for text in first.plain] == [8] * 3
    (kept,) = (tmp_path / "plain").iterdir()
    assert [tuple(text) for text in json.loads(kept.read_text())] == list(first.plain)
    monkeypatch.setattr(folds, "generate_plain", unwanted)
    # Another seed's fold reads the same.
    assert fold_texts(experiment, experiment.draw(2), given).plain == first.plain
    # Other lengths, numbers and weights are other texts.
    other, drawn_there = small("gpt2")
    for experiment_, drawn_, changes in (
        (experiment, drawn, {"plain_length": 9}),
        (experiment, drawn, {"plain_texts": 4}),
        (other, drawn_there, {}),
    ):
        with pytest.raises(AssertionError, match="no text should be generated"):
            fold_texts(experiment_, drawn_, given.model_copy(update=changes))


def test_weights_are_hashed_once_for_all_folds_of_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    hashed: list[str] = []

    def hash_weights(lm: LanguageModel) -> str:
        hashed.append(lm.name)
        return "digest"

    monkeypatch.setattr(experiment_module, "weights_digest", hash_weights)
    experiment, _ = small()
    given = settings(plain="generated", plain_texts=2, plain_length=8)
    digest(experiment, [])
    for seed in (1, 2):
        fold_parts(experiment, experiment.draw(seed), given)
        fold_texts(experiment, experiment.draw(seed), given)
    assert hashed == [experiment.lm.name]


def test_plain_text_leaves_room_for_the_opening(tmp_path: Path) -> None:
    experiment, drawn = small()
    narrow = dataclasses.replace(experiment, context=len(drawn.encoded.prefix) + 60)
    file = write_lines(tmp_path / "prose.txt", ["a story told twice " * 100])
    texts = fold_texts(narrow, drawn, settings(plain=file, plain_length=4000))

    assert [len(text) for text in texts.plain] == [narrow.context - len(experiment.encoder.opening)]


# The learner.


@pytest.mark.parametrize("method", get_args(FoldMethod))
def test_every_method_answers_queries_and_leaves_the_model_as_it_was(method: FoldMethod) -> None:
    experiment, drawn = small()
    before = {name: weight.clone() for name, weight in experiment.lm.model.state_dict().items()}
    shares: list[float] = []

    record = make_fold(experiment, drawn, settings(method=method, texts=10), shares.append)
    answers = answer_log_probabilities(record.adapted, experiment.lm, experiment.queries)

    assert answers.shape == (len(experiment.queries), len(LABELS))
    assert answers.isfinite().all()
    assert sum(shares) == pytest.approx(1)
    assert (isinstance(record.adapted, AdaptedModel) and bool(record.adapted.deltas)) is (method in IN_WEIGHTS)
    assert json.loads(json.dumps(record.about()))["plain_source"] == "none"
    assert (record.strength is not None) is (method == "ridge")
    assert len(record.explained) == (2 if method == "ridge" else 0)
    after = experiment.lm.model.state_dict()
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert torch.equal(weight, before[name]), name


def test_settings_reach_the_learner() -> None:
    experiment, drawn = small()
    record = make_fold(experiment, drawn, settings(strength=0.25, layers=(1,)))

    assert record.strength == 0.25
    assert record.explained[0] is None
    assert isinstance(record.adapted, AdaptedModel)
    assert all(".layers.1." in change.parameter for change in record.adapted.deltas)
    free, held = (make_fold(experiment, drawn, settings(answer_weight=weight)).adapted for weight in (1.0, 100.0))
    assert isinstance(free, AdaptedModel)
    assert isinstance(held, AdaptedModel)
    assert not torch.equal(free.deltas[0].delta, held.deltas[0].delta)
    with pytest.raises(ConfigError, match=r"layers \[2\] do not exist: .* has layers 0 to 1"):
        make_fold(experiment, drawn, settings(layers=(0, 2)))


@pytest.mark.parametrize(("family", "biases"), [("llama", True), ("gpt2", True), ("gptj", False)])
def test_ridge_has_a_bias_only_where_a_checkpoint_can_hold_it(family: str, biases: bool) -> None:
    experiment, drawn = small(family)
    adapted = make_fold(experiment, drawn, settings(texts=10)).adapted

    assert isinstance(adapted, AdaptedModel)
    assert any(change.parameter.endswith(".bias") for change in adapted.deltas) is biases


@pytest.mark.parametrize("method", get_args(FoldMethod))
def test_what_changes_no_weights_cannot_be_written(method: FoldMethod) -> None:
    if method in IN_WEIGHTS:
        require_weights(method)
        return
    with pytest.raises(ConfigError, match=f"method {method} changes no weights.*choose one of ridge, thought-vector"):
        require_weights(method)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": 2}, "greater than or equal to 8"),
        ({"strength": -1.0}, "strength -1.0 must be 0 or more and finite, or gcv"),
        ({"strength": float("nan")}, "strength nan must be 0 or more and finite, or gcv"),
        ({"strength": float("inf")}, "strength inf must be 0 or more and finite, or gcv"),
        ({"answer_weight": float("inf")}, "finite number"),
        ({"plain_weight": float("inf")}, "finite number"),
        ({"layers": ()}, "layers [] must be different, at least one"),
        ({"layers": (1, 1)}, "layers [1, 1] must be different"),
        ({"method": "gradient"}, "'ridge'"),
        ({"plain_weight": -0.5}, "greater than or equal to 0"),
        ({"answer_weight": 0.5}, "greater than or equal to 1"),
        ({"rank": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="validation error") as error:
        FoldSettings(**changes)
    assert words in str(error.value)
