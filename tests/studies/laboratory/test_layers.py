"""Layers side by side: errors are those of the trained models, differences are seed by seed, equivalences hold."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import TrainingError
from dualform.lab.predictors import Bayes, Descent, LeastSquares, OnePassSGD, by_point
from dualform.lab.sequence_model import MIXERS, Mixer, SequenceModelConfig, train_sequence_model
from dualform.lab.training import Training
from dualform.ops.fast_weights import fast_weights
from dualform.ops.streams import stream
from dualform.studies.laboratory import layer_equivalences
from dualform.studies.laboratory import layers as study
from dualform.studies.laboratory.config import RegressionConfig, regression_config
from dualform.studies.laboratory.layer_equivalences import equivalence_claims, equivalence_errors
from dualform.studies.laboratory.layers import NOISES, layers, pieces
from dualform.studies.laboratory.result import Claim, LabCurve, LabRow, LabStudy, LabTable
from dualform.studies.laboratory.words import as_expected
from dualform.studies.pieces import Piece
from dualform.studies.seed_statistics import over_seeds, paired_difference
from tests.studies.small import MemoryStore

SEEDS = (1, 2)
NAMES = ["without noise", "noise 0.5"]
EXACT = [["least squares = Bayes"], ["Bayes", "least squares"]]


@pytest.fixture(autouse=True, scope="module")
def _few_sequences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_TESTED", 64)
        patch.setattr(study, "_BATCH", 4)
        patch.setattr(study, "_WIDTH", 8)
        patch.setattr(study, "_MLP", 8)
        patch.setattr(study, "_LAYERS", 1)
        yield


@pytest.fixture(scope="module")
def config() -> RegressionConfig:
    return regression_config(studies=("layers",), seeds=SEEDS, dimension=3, points=4, steps=2 / study.STEPS)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def result(config: RegressionConfig, store: MemoryStore) -> LabStudy:
    return layers(config, store)


def errors_of(store: MemoryStore, setting: str, mixer: Mixer) -> Tensor:
    """`(seed, point)`."""
    return torch.stack([store.pieces[f"layers, {setting}, {mixer}, seed {seed}"].tensors["errors"] for seed in SEEDS])


def row(table: LabTable, name: str) -> LabRow:
    (each,) = [each for each in table.rows if each.name == name]
    return each


def test_every_mixer_has_a_curve_and_a_row_in_each_setting(result: LabStudy) -> None:
    assert result.name == "layers"
    assert [chart.title for chart in result.charts] == [
        f"Error by examples in context, {name}, d = 3, N = 4" for name in NAMES
    ]
    assert [table.title.partition(", ")[2] for table in result.tables] == NAMES
    for chart, table, exact in zip(result.charts, result.tables, EXACT, strict=True):
        references = [*exact, "one pass of SGD", "one step of descent"]
        assert [curve.name for curve in chart.curves] == [*references, *MIXERS]
        assert [curve.reference for curve in chart.curves] == [True] * len(references) + [False] * len(MIXERS)
        assert [each.name for each in table.rows] == [*MIXERS, *references]
        assert all(curve.x == [0.0, 1.0, 2.0, 3.0, 4.0] and len(curve.y) == 5 for curve in chart.curves)
        assert all(len(each.cells) == len(table.columns) for each in table.rows)
    assert LabStudy.model_validate_json(result.model_dump_json()) == result


def test_errors_are_those_of_the_trained_model(result: LabStudy, store: MemoryStore, config: RegressionConfig) -> None:
    tasks = study._tasks(config, 0.5)
    shape = SequenceModelConfig("delta", dimension=3, width=8, layers=1, heads=2, mlp=8, chunk=10)
    model = train_sequence_model(shape, tasks, Training(2, 4, 5e-3), 2)
    sequences = tasks.draw(64, stream("test", 0, 500))
    with torch.no_grad():
        predicted = model(sequences.x, sequences.y)
    # To the function itself: noise in y is not to be predicted.
    errors = (predicted - sequences.clean).square().mean(0) / sequences.clean.square().mean()
    own = errors_of(store, "noise 0.5", "delta")
    torch.testing.assert_close(own[1], errors.double())
    (curve,) = [curve for curve in result.charts[1].curves if curve.name == "delta"]
    assert curve.y == [over_seeds(at) for at in own.T.tolist()]
    first, last, _, parameters = row(result.tables[1], "delta").cells
    assert first == over_seeds([float(each[1:].mean()) for each in own])
    assert last == over_seeds([float(each[-1]) for each in own])
    assert parameters == over_seeds([float(sum(parameter.numel() for parameter in model.parameters()))])


def test_differences_are_to_softmax_seed_by_seed(result: LabStudy, store: MemoryStore) -> None:
    for table, name in zip(result.tables, NAMES, strict=True):
        assert row(table, "softmax").cells[2] is None
        means = {mixer: errors_of(store, name, mixer)[:, 1:].mean(1).tolist() for mixer in MIXERS}
        for mixer in MIXERS[1:]:
            expected = paired_difference(SEEDS, means[mixer], means["softmax"])
            cell = row(table, mixer).cells[2]
            assert cell is not None
            assert (cell.mean, cell.ci95, cell.n) == (expected.mean, expected.ci95, 2)


def test_exact_predictors_are_in_the_table(result: LabStudy, config: RegressionConfig) -> None:
    for chart, noise, exact in zip(result.charts, NOISES, EXACT, strict=True):
        tasks = study._tasks(config, noise)
        sequences = tasks.draw(64, stream("test", 0, round(1000 * noise)))
        x, y, clean = sequences.x.double(), sequences.y.double(), sequences.clean.double()

        def errors(predictor: Any, x: Tensor = x, y: Tensor = y, clean: Tensor = clean) -> list[float]:
            return ((by_point(predictor, x, y) - clean).square().mean(0) / clean.square().mean()).tolist()

        curves: dict[str, LabCurve] = {curve.name: curve for curve in chart.curves}
        means = {name: [at.mean for at in curve.y] for name, curve in curves.items()}
        assert means[exact[0]] == pytest.approx(errors(Bayes(noise, 3**-0.5)))
        assert means[exact[-1]] == pytest.approx(errors(LeastSquares()))
        # One step on examples it has all seen together knows no less than nothing does.
        assert sum(m or 0 for m in means["one step of descent"]) < 5 * (means["one step of descent"][0] or 0)
    without_noise = result.charts[0].curves[0]
    assert (without_noise.y[3].mean or 0) < 1e-6 < (without_noise.y[1].mean or 0)


def test_references_have_the_rate_that_is_best_on_other_sequences(result: LabStudy, config: RegressionConfig) -> None:
    setting = study._Setting(study._tasks(config, 0.5))
    assert not torch.equal(setting.test.x, setting.tuning.x)
    for name, predictor in (("one pass of SGD", OnePassSGD), ("one step of descent", lambda rate: Descent(1, rate))):
        means = []
        for sequences in (setting.tuning, setting.test):
            x, y, clean = sequences.x.double(), sequences.y.double(), sequences.clean.double()
            errors = [(by_point(predictor(rate), x, y) - clean).square().mean(0) for rate in study._RATES]
            means.append([float(each[1:].mean() / clean.square().mean()) for each in errors])
        cell = row(result.tables[1], name).cells[0]
        assert cell is not None
        assert cell.mean == pytest.approx(means[1][means[0].index(min(means[0]))])


def test_what_is_smaller_than_asked_for_is_told(result: LabStudy) -> None:
    assert not any("rather than" in note for note in result.notes)
    (note,) = study._notes_on_size(RegressionConfig())
    assert note.startswith("Trained on 5 dimensions and 10 examples instead of 10 and 10:")
    assert study._notes_on_size(RegressionConfig(dimension=5, points=15)) == []


def test_the_answer_agrees_with_the_numbers(result: LabStudy, store: MemoryStore) -> None:
    for name, table in zip(NAMES, result.tables, strict=True):
        means = {mixer: float(errors_of(store, name, mixer)[:, 1:].mean()) for mixer in MIXERS}
        best = min(means, key=lambda mixer: means[mixer])
        (sentence,) = re.findall(f"{name}, (.*?) has the least mean error, (.*?) ", result.answer, re.IGNORECASE)
        assert sentence == (best, f"{means[best]:.3f}")
        (lower, higher) = re.findall(
            r"Significantly lower than softmax: (.*?); significantly higher: (.*?)\.", result.answer
        )[NAMES.index(name)]
        for mixer in MIXERS[1:]:
            cell = row(table, mixer).cells[2]
            assert cell is not None
            low, high = cell.ci95
            assert low is not None
            assert high is not None
            assert (mixer in lower.split(", "), mixer in higher.split(", ")) == (high < 0, low > 0)
    assert "12 of 12 equivalences hold numerically, and 3 of 3 cases that must fail do fail." in result.answer
    assert any("not adjusted for 10 comparisons" in note for note in result.notes)


def test_what_was_done_before_it_was_stopped_is_kept(
    result: LabStudy, store: MemoryStore, config: RegressionConfig
) -> None:
    half = MemoryStore()

    def put(piece: Piece) -> None:
        if len(half.put_names) == 3:
            raise KeyboardInterrupt
        MemoryStore.put(half, piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "put", put)
        with pytest.raises(KeyboardInterrupt):
            layers(config, half)
    assert half.put_names == store.put_names[:3]
    for name in half.put_names[1:]:
        torch.testing.assert_close(half.pieces[name].tensors, store.pieces[name].tensors)


def rounded(study: LabStudy) -> str:
    """A study with its numbers to nine digits; errors of an exact solution, of 1e-15, are rounding themselves."""
    return re.sub(r"-?\d+\.\d+(?:e[+-]?\d+)?", lambda number: f"{round(float(number[0]), 9):.9g}", repr(study))


def test_nothing_that_was_kept_is_done_again(
    result: LabStudy, store: MemoryStore, config: RegressionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train_sequence_model", "equivalence_errors"):
        monkeypatch.setattr(study, name, None)
    progress: list[str] = []
    again = layers(config, store, lambda amount, doing: progress.extend([doing] * round(amount)))
    assert rounded(again) == rounded(result)
    assert len(progress) == len(set(progress)) == pieces(config) == 2 * len(MIXERS) * 2 + 1


def test_other_steps_make_other_pieces(store: MemoryStore, config: RegressionConfig) -> None:
    tasks = study._tasks(config, 0.0)
    wanted = "layers, without noise, softmax, seed 1"
    other = config.model_copy(update={"steps": 3 / study.STEPS})
    requested: list[str] = []

    class Asked(MemoryStore):
        def get(self, name: str, inputs: str) -> Piece | None:
            if name == wanted:
                requested.append(inputs)
                raise KeyboardInterrupt
            return None

    with pytest.raises(KeyboardInterrupt):
        layers(other, Asked())
    assert requested[0] != store.pieces[wanted].inputs
    assert str(tasks) in requested[0]


def test_a_training_that_diverges_is_left_out_and_told(
    store: MemoryStore, config: RegressionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_sequence_model
    kept = MemoryStore()
    kept.pieces = {name: piece for name, piece in store.pieces.items() if "delta" not in name}

    def diverging(shape: SequenceModelConfig, tasks: Any, training: Training, seed: int) -> Any:
        if shape.mixer == "delta" or seed == 2:
            raise TrainingError(f"{shape.mixer}, step 1: the loss is nan. Lower the learning rate.")
        return train(shape, tasks, training, seed)

    monkeypatch.setattr(study, "train_sequence_model", diverging)
    result = layers(config, kept)
    assert row(result.tables[0], "delta").cells[:3] == [None, None, None]
    assert "delta" not in [curve.name for curve in result.charts[0].curves]
    cell = row(result.tables[0], "gated-delta").cells[2]
    assert cell is not None
    assert (cell.n, cell.ci95) == (1, (None, None))
    assert (
        "without noise, seed 2: gated-delta, step 1: the loss is nan. Lower the learning rate. It is left out."
        in result.notes
    )
    assert sum("It is left out." in note for note in result.notes) == 2 * (2 + 1)
    # It is kept as what it is: the run that goes on does not try again.
    monkeypatch.setattr(study, "train_sequence_model", None)
    assert layers(config, kept) == result


def test_a_setting_in_which_nothing_could_be_trained_has_an_answer(
    config: RegressionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(*args: Any, **settings: Any) -> Any:
        # As mesa's solver says it.
        k = torch.ones(1, 1, 8, 4)
        fast_weights("mesa", k, k, k, ridge=1e-12)

    monkeypatch.setattr(study, "train_sequence_model", diverging)
    result = layers(config.model_copy(update={"seeds": (1,)}), MemoryStore())
    assert result.answer.startswith("Without noise: no model could be trained. Noise 0.5: no model could be trained.")
    assert sum("not positive definite" in note for note in result.notes) == 2 * len(MIXERS)
    assert any(note.startswith("One seed has no interval") for note in result.notes)


def test_with_one_seed_no_layer_is_called_better(store: MemoryStore, config: RegressionConfig) -> None:
    each = MemoryStore()
    each.pieces = dict(store.pieces)
    result = layers(config.model_copy(update={"seeds": (1,)}), each)
    assert each.put_names == ["layers, equivalences"]
    assert "has the least mean error" in result.answer
    assert "Significantly" not in result.answer
    assert any(note.startswith("One seed has no interval") for note in result.notes)


def test_the_setting_is_small_whatever_the_config_says() -> None:
    tasks = study._tasks(RegressionConfig(dimension=64, points=256), 0.0)
    assert (tasks.dimension, tasks.points) == (5, 16)
    tasks = study._tasks(RegressionConfig(), 0.0)
    assert (tasks.dimension, tasks.points) == (5, 11)


@pytest.fixture(scope="module")
def claims(config: RegressionConfig) -> list[Claim]:
    return equivalence_claims(equivalence_errors(SEEDS, study._tasks(config, 0.0)))


def test_equivalences_hold_and_false_ones_do_not(claims: list[Claim]) -> None:
    for claim in claims:
        assert claim.holds is not claim.must_fail, claim.says
        assert claim.found.n == 2
        assert claim.found.mean is not None
        assert (claim.found.mean > 1e-2) if claim.must_fail else (claim.found.mean < 1e-12)
        assert claim.source or claim.must_fail
    assert len({claim.says for claim in claims}) == len(claims)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_claim_with_a_missing_error_neither_holds_nor_fails_as_expected(seed: int, claims: list[Claim]) -> None:
    errors = torch.full((len(claims), 2), 0.0, dtype=torch.float64)
    errors[:, seed] = torch.nan
    for claim in equivalence_claims(errors):
        assert claim.found.mean is None
        assert not as_expected(claim), claim.says
        assert claim.must_fail or not claim.holds
    for claim in equivalence_claims(errors[:, :0]):
        assert not as_expected(claim), claim.says


@pytest.mark.parametrize("rule", ["linear", "delta", "gated-delta", "longhorn", "mesa", "ttt-linear", "titans"])
def test_a_layer_that_computes_something_else_is_detected(
    rule: str, claims: list[Claim], config: RegressionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fast_weights

    def wrong(name: Any, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        done = right(name, q, k, v, **options)
        return done._replace(output=done.output * (1 + 1e-6)) if name == rule else done

    monkeypatch.setattr(layer_equivalences, "fast_weights", wrong)
    result = equivalence_claims(equivalence_errors(SEEDS, study._tasks(config, 0.0)))
    fallen = [after.says for before, after in zip(claims, result, strict=True) if before.holds and not after.holds]
    own = {"linear": 3, "delta": 2, "mesa": 2, "titans": 2}
    assert len(fallen) == own.get(rule, 1)
