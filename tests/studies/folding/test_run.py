"""Every way of folding is made once, and each number is the one that a plain reading gives."""

import csv
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from dualform.errors import ConfigError, DualformError, ModelError, TaskError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.editing.edit import applied
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.perplexity import text_losses
from dualform.result import Result
from dualform.runs.store import RunFolder
from dualform.studies.against import recovered
from dualform.studies.experiment import Experiment
from dualform.studies.fold_settings import FoldMethod
from dualform.studies.folding import run as study
from dualform.studies.folding.config import (
    AXES,
    FoldingConfig,
    FoldVariant,
    LayerSet,
    folding_config,
    layers_of_set,
)
from dualform.studies.folding.result import FoldingResult, FoldPoint
from dualform.studies.folding.run import FoldingStudy, folding
from dualform.studies.folding.summary import folding_table
from dualform.studies.folds import make_fold
from dualform.studies.pieces import Piece
from dualform.studies.statistics import Statistics
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task
from tests.studies.small import MemoryStore, RecordedProgress, sentences, small_lm, small_task

PROSE = ["a cold and plain morning, and with wit and grace it went", "one of the worst films of the year", "so it is"]
SETTINGS: dict[str, Any] = {
    "k": 4,
    "seeds": (1, 2),
    "limit": 8,
    "selection_limit": 6,
    "rates": (1e-2,),
    "resamples": 50,
    "axes": ("method", "k", "texts"),
    "methods": ("ridge", "thought-vector", "rank-one"),
    "ks": (2,),
    "text_counts": (8, 64),
    "ft": False,
}


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("texts") / "prose.txt"
    path.write_text("\n".join(PROSE) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def moods(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another task: the same texts with another question."""
    path = tmp_path_factory.mktemp("tasks") / "moods.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [
            (text, "funny" if "wit" in text or number % 3 else "cold") for number, (text, _) in enumerate(sentences())
        ]
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


def config(prose: str, **changes: Any) -> FoldingConfig:
    """A study of seconds."""
    fold = {"texts": 12, "plain": prose, **changes.pop("fold", {})}
    return folding_config("tiny", "toy", **{**SETTINGS, "fold": fold, **changes})


def run(config: FoldingConfig, **more: Any) -> FoldingStudy:
    return folding(config, lm=small_lm("llama"), task=small_task(), **more)


@cache
def whole(prose: str) -> FoldingStudy:
    """One study that many tests read."""
    return run(config(prose, perplexity=prose, ft=True))


def points_of(result: FoldingResult) -> list[FoldPoint]:
    assert result.folding is not None
    return result.folding.points


def at(result: FoldingResult, axis: str, value: str) -> FoldPoint:
    (found,) = [point for point in points_of(result) if (point.axis, point.value) == (axis, value)]
    return found


def numbers(result: FoldingResult) -> dict[str, Any]:
    return result.model_dump(mode="json", by_alias=True, exclude={"environment"})


def accuracy(table: torch.Tensor, experiment: Experiment[Any]) -> float:
    return float((table.argmax(1) == experiment.labels).double().mean())


# The points of a configuration.


def test_each_axis_varies_one_thing_of_the_default(prose: str) -> None:
    requested = config(
        prose, axes=AXES, strengths=(0.5, "gcv"), layer_sets=("all", "last half"), sources=("train", "generated")
    )
    points = requested.points(4)

    assert [(point.axis, point.value) for point in points] == [
        ("method", "ridge"),
        ("method", "thought-vector"),
        ("method", "rank-one"),
        ("k", "2"),
        ("k", "4"),
        ("texts", "8"),
        ("texts", "12"),
        ("texts", "64"),
        ("strength", "0.5"),
        ("strength", "gcv"),
        ("layers", "all"),
        ("layers", "last half"),
        ("source", "train"),
        ("source", "generated"),
    ]
    default = requested.default.settings.model_dump()
    names = {"method": "method", "texts": "texts", "strength": "strength", "layers": "layers", "source": "calibration"}
    for point in points:
        found = point.fold.settings.model_dump()
        differing = {name for name, value in found.items() if value != default[name]}
        assert differing <= {names.get(point.axis)}, point
        assert (point.fold.k != requested.k) <= (point.axis == "k")
    for axis in AXES:
        assert sum(point.fold == requested.default for point in points if point.axis == axis) == 1, axis


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 12, 30])
def test_sets_of_layers_are_never_empty_and_halves_make_a_whole(n_layers: int) -> None:
    sets = {name: layers_of_set(name, n_layers) for name in get_args(LayerSet)}

    assert sets.pop("all") is None
    for name, layers in sets.items():
        assert layers is not None
        assert layers, name
        assert set(layers) <= set(range(n_layers))
        assert list(layers) == sorted(set(layers))
    if n_layers > 1:
        assert (*(sets["first half"] or ()), *(sets["last half"] or ())) == tuple(range(n_layers))


def test_sets_of_layers_contain_the_named_layers() -> None:
    assert layers_of_set("first quarter", 12) == (0, 1, 2)
    assert layers_of_set("last quarter", 12) == (9, 10, 11)
    assert layers_of_set("middle half", 12) == (3, 4, 5, 6, 7, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": 0}, "k 0 leaves nothing to fold"),
        ({"ks": (0, 4)}, "k 0 leaves nothing to fold"),
        ({"text_counts": (2, 64)}, "text_counts [2] are too few to fold from: give at least 8"),
        ({"methods": ("ridge", "ridge")}, "methods ['ridge', 'ridge'] must be different"),
        ({"strengths": (1.0, 1)}, "strengths [1.0, 1.0] must be different"),
        ({"axes": ("nonsense",)}, "'nonsense'"),
        ({"layer_sets": ("odd",)}, "'odd'"),
        ({"sources": ("web",)}, "'web'"),
        ({"transfer": ("toy",)}, "task toy is the study's own"),
        ({"compose": ("toy",)}, "task toy is the study's own"),
        ({"transfer": ("a", "a")}, "transfer ['a', 'a'] must be different"),
        ({"compose": ("a",), "fold": {"method": "kv-momentum"}}, "kv-momentum does not"),
        ({"seeds": (1, 1)}, "seeds [1, 1] must be one or more different"),
        ({"rates": (-1.0,)}, "rates [-1.0] must be one or more numbers between"),
        ({"perplexity_texts": 0}, "perplexity_texts: "),
        ({"fold": {"texts": 3}}, "fold.texts: "),
    ],
)
def test_invalid_settings_are_rejected(prose: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(prose, **changes)
    assert words in str(raised.value)


def test_one_message_names_all_invalid_settings(prose: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(prose, k=0, text_counts=(2,), transfer=("toy",))
    for words in ("k 0 leaves", "text_counts [2]", "task toy is"):
        assert words in str(raised.value)


def test_a_configuration_comes_back_from_its_file(prose: str, tmp_path: Path) -> None:
    requested = config(prose, strengths=(0.1, "gcv"), limit=0, fold={"layers": (0, 1), "strength": 0.3})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(requested.model_dump(mode="json")), encoding="utf-8")

    assert requested.limit is None
    assert FoldingConfig.read(path) == requested
    path.write_text("model: a\ntask: b\nfolds: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="folds: Extra inputs"):
        FoldingConfig.read(path)


# What is done.


def counted(monkeypatch: pytest.MonkeyPatch, failing: FoldMethod | None = None) -> list[tuple[int, int, str]]:
    """Folds that are made from now on: seed, demonstrations, method."""
    found: list[tuple[int, int, str]] = []

    def make(experiment: Any, drawn: Any, settings: Any, *rest: Any) -> Any:
        found.append((drawn.demonstrations.seed, len(drawn.demonstrations.rows), settings.method))
        if settings.method == failing:
            raise ModelError(f"{failing} is not for this model")
        return make_fold(experiment, drawn, settings, *rest)

    monkeypatch.setattr(study, "make_fold", make)
    return found


def test_a_fold_that_lies_on_several_axes_is_made_once(prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    kept, watched = MemoryStore(), RecordedProgress()
    found = run(config(prose), pieces=kept, progress=watched)

    # The default, two other methods, two other numbers of texts, one of demonstrations.
    assert len(made) == len(found.seeds) * 6
    assert [
        fold.settings.texts for fold in found.seeds[0].folds if fold.settings.method == "ridge" and fold.k == 4
    ] == [
        12,
        8,
        64,
    ]
    places = [at(found.result, axis, value) for axis, value in (("method", "ridge"), ("k", "4"), ("texts", "12"))]
    unnamed = [place.model_dump(exclude={"axis", "value"}) for place in places]
    assert unnamed[0] == unnamed[1] == unnamed[2]
    assert len(kept.put_names) == len(set(kept.put_names))
    assert watched.done == watched.total


def test_a_second_run_reads_everything_back(prose: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    requested = config(prose, perplexity=prose, ft=True)
    store = RunFolder(tmp_path / "run", requested)
    first = run(requested, pieces=store)
    assert numbers(first.result) == numbers(whole(prose).result)

    made = counted(monkeypatch)
    for name in ("answer_log_probabilities", "text_losses", "train_at_best_rate"):
        monkeypatch.setattr(study, name, unwanted)
    again = run(requested, pieces=RunFolder(tmp_path / "run", requested))

    assert made == []
    assert numbers(again.result) == numbers(first.result)
    tables = [folding_table(one.description, one.base, one.seeds) for one in (first, again)]
    assert tables[0].equals(tables[1])


def unwanted(*arguments: object, **more: object) -> Any:
    raise AssertionError("nothing was to be done")


def test_a_run_that_stops_goes_on_where_it_stopped(prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = MemoryStore()
    with monkeypatch.context() as patch:
        patch.setattr(kept, "put", lambda piece: stop_at(kept, piece, 6))
        with pytest.raises(KeyboardInterrupt):
            run(config(prose), pieces=kept)
    before = set(kept.pieces)
    assert len(before) == 6
    made = counted(monkeypatch)
    found = run(config(prose), pieces=kept)

    assert len(made) < 12
    assert not before & set(kept.put_names[6:])
    assert numbers(found.result) == numbers(run(config(prose)).result)


def stop_at(kept: MemoryStore, piece: Piece, n: int) -> None:
    if len(kept.pieces) == n:
        raise KeyboardInterrupt
    MemoryStore.put(kept, piece)


def test_other_weights_do_not_use_the_pieces(prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = MemoryStore()
    requested = config(prose, axes=(), seeds=(1,))
    run(requested, pieces=kept)
    made = counted(monkeypatch)
    folding(requested, lm=small_lm("gpt2"), task=small_task(), pieces=kept)

    assert len(made) == 1


def test_a_fold_that_is_not_possible_is_reported_and_left_out(
    prose: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = counted(monkeypatch, failing="thought-vector")
    requested = config(prose, axes=("method",))
    found = run(requested, pieces=RunFolder(tmp_path / "run", requested))

    assert [point.value for point in points_of(found.result)] == ["ridge", "rank-one"]
    (warning,) = [warning for warning in found.result.warnings if "could not be folded" in warning]
    assert warning == "method thought-vector could not be folded: thought-vector is not for this model"
    learners = set(folding_table(found.description, found.base, found.seeds)["learner"].to_pylist())
    assert not any("thought-vector" in learner for learner in learners)
    # That it failed is kept too.
    n = len(made)
    again = run(requested, pieces=RunFolder(tmp_path / "run", requested))
    assert len(made) == n
    assert numbers(again.result) == numbers(found.result)


def test_a_default_fold_that_is_not_possible_ends_the_study(prose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, failing="ridge")
    with pytest.raises(DualformError, match="ridge is not for this model"):
        run(config(prose))


# What is found.


def by_hand(lm: LanguageModel, experiment: Experiment[Any], deltas: Any) -> torch.Tensor:
    """Zero-shot answers of a model with changed weights."""
    with applied(lm.model, deltas):
        adapted = ZeroShot(experiment.encoder.opening).adapt(lm, experiment.draw(1).encoded)
        return answer_log_probabilities(adapted, lm, experiment.queries)


def folded(requested: FoldingConfig, task: Task, seed: int) -> tuple[Experiment[Any], Any]:
    """A task's default fold."""
    experiment = Experiment.of(requested, small_lm("llama"), task)
    adapted = make_fold(experiment, experiment.draw(seed), requested.fold).adapted
    assert isinstance(adapted, AdaptedModel)
    return experiment, adapted.deltas


def test_the_default_fold_answers_as_it_does_by_hand(prose: str) -> None:
    requested = config(prose)
    found = whole(prose)
    for seed in found.seeds:
        experiment, deltas = folded(requested, small_task(), seed.seed)
        table = seed.folds[requested.default].tensors["answers"]
        torch.testing.assert_close(table, by_hand(small_lm("llama"), experiment, deltas), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.base["answers/"], by_hand(small_lm("llama"), experiment, ()), rtol=0, atol=1e-10)
    assert found.result.folding is not None
    assert found.result.folding.zero_shot.mean == pytest.approx(accuracy(found.base["answers/"], experiment))
    # Zero-shot is the same for every seed, and is not counted twice.
    assert (found.result.folding.zero_shot.n, found.result.folding.icl.n) == (8, 16)


def test_each_number_of_demonstrations_is_compared_with_its_own_prompt(prose: str) -> None:
    found = whole(prose)
    lm = small_lm("llama")
    icl = {}
    for k in (2, 4):
        experiment = Experiment.of(config(prose, k=k), lm, small_task())
        tables = []
        for seed in found.seeds:
            adapted = InContext().adapt(lm, experiment.draw(seed.seed).encoded)
            tables.append(answer_log_probabilities(adapted, lm, experiment.queries))
            torch.testing.assert_close(seed.prompted[k], tables[-1], rtol=0, atol=1e-10)
        icl[k] = sum(accuracy(table, experiment) for table in tables) / len(tables)
        point = at(found.result, "k", str(k))
        assert point.icl.mean == pytest.approx(icl[k])
        fold = FoldVariant(k, config(prose).fold)
        same = [
            (seed.folds[fold].tensors["answers"].argmax(1) == table.argmax(1)).double().mean()
            for seed, table in zip(found.seeds, tables, strict=True)
        ]
        assert point.agreement.mean == pytest.approx(float(sum(same)) / len(same))
    assert not torch.equal(found.seeds[0].prompted[2], found.seeds[0].prompted[4])


def test_shares_recovered_are_those_of_against(prose: str) -> None:
    found = whole(prose)
    labels = torch.tensor([example.label for example in found.description.examples])

    def right(tables: list[torch.Tensor]) -> torch.Tensor:
        return (torch.stack(tables).argmax(2) == labels).double()

    stats = Statistics(50, ("1", "2"))
    zsl = right([found.base["answers/"]] * 2)
    for planned in config(prose).points(2):
        point = at(found.result, planned.axis, planned.value)
        mine = right([seed.folds[planned.fold].tensors["answers"] for seed in found.seeds])
        icl = right([seed.prompted[planned.fold.k] for seed in found.seeds])
        assert point.recovered == recovered(mine, zsl, icl, stats)
        assert point.accuracy == stats.share(mine)


def test_costs_are_those_of_the_way_itself(prose: str) -> None:
    result = whole(prose).result
    few, many = (at(result, "texts", value) for value in ("8", "64"))
    assert few.adapt_flops is not None
    assert many.adapt_flops is not None
    assert few.adapt_flops < many.adapt_flops
    # A fold reads the query alone; rank-one also reads the keys and values of the whole prompt.
    assert few.query_tokens == at(result, "method", "thought-vector").query_tokens
    rank_one = at(result, "method", "rank-one")
    assert rank_one.query_tokens is not None
    assert few.query_tokens is not None
    assert rank_one.query_tokens > few.query_tokens
    assert (rank_one.strength, rank_one.perplexity_ratio) == (None, None)
    assert few.strength is not None


def test_a_point_has_a_note_on_missing_texts(prose: str) -> None:
    result = whole(prose).result
    assert at(result, "texts", "64").note == "only 30 texts were available"
    assert at(result, "texts", "12").note == ""


def test_demonstrations_that_do_not_fit_are_reported(prose: str) -> None:
    experiment = Experiment.of(config(prose, k=8), small_lm("llama"), small_task())
    longest = max(query.width() for query in experiment.queries)
    room = max(len(experiment.draw(seed).encoded.prefix) for seed in (1, 2)) + longest - 25
    requested = config(prose, axes=("k",), ks=(8,), context=room)
    with pytest.warns(UserWarning, match="the prompt has the first"):
        result = run(requested).result

    note = at(result, "k", "8").note
    assert note.endswith("demonstrations fit")
    fitted = int(note.split()[1])
    assert 0 < fitted < 8
    assert f"Only {fitted} of 8 demonstrations fit the context of {room} tokens." in result.warnings
    assert at(result, "k", "4").note == ""


def test_a_number_larger_than_the_train_split_is_reported_and_left_out(prose: str) -> None:
    result = run(config(prose, axes=("k",), ks=(2, 500))).result
    assert [point.value for point in points_of(result)] == ["2", "4"]
    (note,) = [note for note in result.warnings if "500" in note]
    assert note.startswith("k 500 could not be folded: ")
    with pytest.raises(TaskError, match="500"):
        run(config(prose, axes=(), k=500))


def test_other_texts_of_files_and_of_other_tasks_do_not_use_the_pieces(prose: str, moods: str, tmp_path: Path) -> None:
    texts, plain, other = tmp_path / "own.txt", tmp_path / "plain.txt", tmp_path / "moods.csv"
    texts.write_text("\n".join(text for text, _ in sentences()), encoding="utf-8")
    plain.write_text("\n".join(PROSE), encoding="utf-8")
    other.write_text(Path(moods).read_text(encoding="utf-8"), encoding="utf-8")
    requested = config(
        prose, axes=(), transfer=(str(other),), perplexity=str(plain), fold={"calibration": str(texts), "texts": 12}
    )
    found = [run(requested).result.model["inputs"]]
    assert run(requested).result.model["inputs"] == found[0]
    for path in (texts, plain, other):
        path.write_text(path.read_text(encoding="utf-8").replace("and", "or"), encoding="utf-8")
        found.append(run(requested).result.model["inputs"])
    assert len(set(found)) == 4


def test_finetuning_is_run_if_requested(prose: str) -> None:
    found, without = whole(prose).result, run(config(prose, axes=())).result
    assert found.folding is not None
    assert without.folding is not None
    assert found.folding.ft is not None
    assert (found.folding.ft.n, [trial.seed for trial in found.trials]) == (16, [1, 2])
    assert (without.folding.ft, without.trials, without.folding.points) == (None, [], [])


def test_perplexity_is_that_of_the_models_themselves(prose: str) -> None:
    requested = config(prose, perplexity=prose)
    found = whole(prose)
    lm = small_lm("llama")
    passages = [tuple(lm.tokenizer(line, add_special_tokens=False)["input_ids"]) for line in PROSE]
    before, after = text_losses(lm, (0,), passages), []
    for seed in (1, 2):
        experiment, deltas = folded(requested, small_task(), seed)
        assert experiment.encoder.opening == (0,)
        with applied(lm.model, deltas):
            after.append(text_losses(lm, (0,), passages))
    base = float((before[:, 0].sum() / before[:, 1].sum()).exp())
    each = [float((losses[:, 0].sum() / losses[:, 1].sum()).exp()) for losses in after]

    assert found.result.folding is not None
    perplexity = found.result.folding.perplexity
    assert perplexity is not None
    assert (perplexity.source, perplexity.tokens) == ("prose.txt", sum(map(len, passages)))
    assert perplexity.before == pytest.approx(base)
    assert perplexity.after.mean == pytest.approx(sum(each) / 2)
    # The mean over seeds of what a token loses: the geometric mean of both ratios.
    assert perplexity.ratio.mean == pytest.approx((each[0] * each[1]) ** 0.5 / base)
    assert perplexity.ratio.n == len(PROSE)
    low, high = perplexity.ratio.ci95
    assert low is not None
    assert high is not None
    assert low <= (perplexity.ratio.mean or 0) <= high
    assert at(found.result, "method", "ridge").perplexity_ratio == pytest.approx(perplexity.ratio.mean)


def test_answers_to_other_tasks_are_those_computed_by_hand(prose: str, moods: str) -> None:
    requested = config(prose, axes=(), transfer=(moods,), compose=(moods,))
    result = run(requested).result
    lm = small_lm("llama")
    other_task = load_task(moods)
    there = Experiment.of(requested, lm, other_task)
    zero_shot = accuracy(by_hand(lm, there, ()), there)
    transferred, alone, together, together_here, own = [], [], [], [], []
    for seed in (1, 2):
        here, deltas = folded(requested, small_task(), seed)
        _, others = folded(requested, other_task, seed)
        transferred.append(accuracy(by_hand(lm, there, deltas), there))
        alone.append(accuracy(by_hand(lm, there, others), there))
        together.append(accuracy(by_hand(lm, there, (*deltas, *others)), there))
        together_here.append(accuracy(by_hand(lm, here, (*deltas, *others)), here))
        own.append(accuracy(by_hand(lm, here, deltas), here))

    assert result.folding is not None
    (transfer,) = result.folding.transfer
    assert transfer.task == moods
    assert transfer.zero_shot.mean == pytest.approx(zero_shot)
    assert transfer.folded.mean == pytest.approx(sum(transferred) / 2)
    assert transfer.difference.mean == pytest.approx(sum(transferred) / 2 - zero_shot)
    (composition,) = result.folding.compositions
    assert composition.parts == ["toy", moods]
    assert composition.accuracy["toy"].mean == pytest.approx(sum(together_here) / 2)
    assert composition.accuracy[moods].mean == pytest.approx(sum(together) / 2)
    assert composition.alone["toy"].mean == pytest.approx(sum(own) / 2)
    assert composition.alone[moods].mean == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_invalid_strengths_are_rejected_before_any_work(prose: str, strength: float) -> None:
    with pytest.raises(ConfigError, match=r"strengths \[.*\] must be 0 or more and finite, or gcv"):
        config(prose, strengths=(strength, "gcv"))


def test_the_model_is_left_as_it_was(prose: str) -> None:
    lm = small_lm("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    run(config(prose, axes=("method",), methods=("ridge", "mezo"), seeds=(1,), perplexity=prose))
    after = lm.model.state_dict()

    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_table_has_every_answer(prose: str) -> None:
    found = whole(prose)
    table = folding_table(found.description, found.base, found.seeds)

    words = [f"log_probability:{word}" for word in small_task().label_words or ()]
    assert table.column_names == ["seed", "learner", "query", "label", "prediction", *words]
    rows = table.to_pylist()
    learners = list(dict.fromkeys(row["learner"] for row in rows))
    assert learners[:4] == ["zsl", "icl k=4", "icl k=2", "ft"]
    # Default, two methods, one k, two numbers of texts.
    assert len(learners) == 4 + 6
    assert len(rows) == 2 * len(learners) * 8
    for learner in learners:
        assert sum(row["learner"] == learner for row in rows) == 16, learner
    rank_one = [row for row in rows if row["learner"].startswith("fold rank-one k=4")]
    right = sum(row["prediction"] == row["label"] for row in rank_one) / len(rank_one)
    assert at(found.result, "method", "rank-one").accuracy.mean == pytest.approx(right)
    for row in rows:
        assert row["prediction"] == max((0, 1), key=lambda i: row[words[i]])


def test_a_result_follows_its_schema_and_says_where_it_comes_from(prose: str) -> None:
    found = whole(prose).result
    assert Result.from_json(found.to_json()) == found
    assert found.study == "folding"
    assert found.demonstrations is not None
    assert set(found.demonstrations.rows) == {"1", "2"}
    assert all(len(rows) == 4 for rows in found.demonstrations.rows.values())
    assert any("2 demonstration seeds" in warning for warning in found.warnings)


def test_labels_of_the_queries_change_accuracies_and_no_answers(prose: str) -> None:
    task = small_task()
    turned = tuple(dataclasses.replace(example, label=1 - example.label) for example in task.split("report"))
    other = dataclasses.replace(task, splits={**task.splits, "report": turned})
    requested = config(prose, axes=(), seeds=(1,))
    straight, crooked = (folding(requested, lm=small_lm("llama"), task=one) for one in (task, other))

    table = straight.seeds[0].folds[requested.default].tensors["answers"]
    assert torch.equal(table, crooked.seeds[0].folds[requested.default].tensors["answers"])
    assert straight.result.folding is not None
    assert crooked.result.folding is not None
    assert straight.result.folding.icl.mean == pytest.approx(1 - (crooked.result.folding.icl.mean or 0))
