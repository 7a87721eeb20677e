"""The laboratory as a whole: which studies are run, what is kept of them, what becomes of their numbers."""

import json

import pytest
from pydantic import ValidationError

from dualform.errors import ConfigError
from dualform.result import Estimate, Result
from dualform.studies.laboratory import run as regression
from dualform.studies.laboratory.config import LAB_NAMES, RegressionConfig, regression_config
from dualform.studies.laboratory.result import LabCurve, LabRow, LabTable
from dualform.studies.laboratory.run import run_laboratory
from dualform.studies.pieces import Piece
from tests.studies import small_laboratory


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is what is tested here, whose studies have tests of their own."""
    for name in ("constructed", "shift"):
        monkeypatch.setitem(regression.STUDIES, name, small_laboratory.__name__)
    small_laboratory.computed.clear()


class MemoryStore:
    """Cells in memory."""

    def __init__(self) -> None:
        self.pieces: dict[str, Piece] = {}

    def get(self, name: str, inputs: str) -> Piece | None:
        result = self.pieces.get(name)
        return result if result is not None and result.inputs == inputs else None

    def put(self, piece: Piece) -> None:
        self.pieces[piece.name] = piece


class Told:
    """Progress, written down."""

    def __init__(self) -> None:
        self.total = 0.0
        self.said: list[tuple[float, str]] = []

    def start(self, total: float) -> None:
        self.total += total

    def advance(self, amount: float, doing: str) -> None:
        self.said.append((amount, doing))


def config(*studies: str, **settings: object) -> RegressionConfig:
    return regression_config(studies=studies, **({"seeds": [1, 2, 3]} | settings))


def numbers(result: Result) -> dict[str, object]:
    return result.model_dump(exclude={"environment"})


def test_studies_are_run_in_the_order_of_reading_whatever_the_order_of_asking() -> None:
    result, _ = run_laboratory(config("shift", "constructed"))

    assert result.laboratory is not None
    assert [study.name for study in result.laboratory.studies] == ["constructed", "shift"]
    assert small_laboratory.computed == [f"{name} {seed}" for name in ("constructed", "shift") for seed in (1, 2, 3)]
    assert (result.study, result.config["studies"]) == ("regression", ["shift", "constructed"])
    assert result.warnings == [
        "3 seeds: Student's intervals over so few seeds are wide and assume a normal distribution."
    ]
    assert Result.from_json(result.to_json()) == result


def test_the_work_ahead_is_told_in_pieces_of_the_studies_chosen() -> None:
    progress = Told()
    run_laboratory(config("constructed", "shift"), progress=progress)
    assert progress.total == 6
    assert [amount for amount, _ in progress.said] == [1.0] * 6
    assert [doing for _, doing in progress.said][::3] == ["constructed, seed 1", "shift, seed 1"]


def test_what_two_studies_call_by_one_name_is_kept_apart_and_never_made_twice() -> None:
    store = MemoryStore()
    whole, _ = run_laboratory(config("constructed", "shift"), pieces=store)
    assert list(store.pieces) == [f"{name}, seed {seed}" for name in ("constructed", "shift") for seed in (1, 2, 3)]

    del store.pieces["shift, seed 2"]
    small_laboratory.computed.clear()
    again, _ = run_laboratory(config("constructed", "shift"), pieces=store)

    assert small_laboratory.computed == ["shift 2"]
    assert numbers(again) == numbers(whole)


def test_a_study_that_was_not_chosen_is_not_even_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(regression.STUDIES, "shift", "dualform.studies.not_there")
    run_laboratory(config("constructed"))
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        run_laboratory(config("constructed", "shift"))
    # All are looked for before any is run.
    assert small_laboratory.computed == ["constructed 1", "constructed 2", "constructed 3"]


def test_every_study_has_a_home() -> None:
    assert tuple(regression.STUDIES) == LAB_NAMES


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": [1]}, ["One seed has no interval: run several, with --seeds 1..5."]),
        ({"seeds": [1, 2, 3, 4, 5]}, []),
        ({"seeds": [1, 2, 3, 4, 5], "steps": 0.1}, ["Models were trained for 0.1 of the steps", "Leave out --steps"]),
    ],
)
def test_few_seeds_and_short_training_are_warned_of(settings: dict[str, object], words: list[str]) -> None:
    result, _ = run_laboratory(config("constructed", **settings))
    assert len(result.warnings) == min(1, len(words))
    assert all(word in result.warnings[0] for word in words)


def test_the_table_holds_every_number_once() -> None:
    result, table = run_laboratory(config("constructed", "shift"))
    rows = table.to_pylist()
    # Two claims, two points, and one cell of two: the other holds nothing.
    assert len(rows) == 2 * (2 + 2 + 1)
    assert [row["kind"] for row in rows[:5]] == ["claim", "claim", "chart", "chart", "table"]
    assert [row["holds"] for row in rows[:5]] == [True, False, None, None, None]
    assert [row["x"] for row in rows[:5]] == [None, None, 1.0, 2.0, None]
    assert (rows[4]["title"], rows[4]["name"], rows[4]["column"]) == ("Once", "seed", "sum")
    assert {row["mean"] for row in rows if row["study"] == "shift"} == {20.0}
    low, high = result.laboratory.studies[0].claims[0].found.ci95 if result.laboratory else (None, None)
    assert (rows[0]["low"], rows[0]["high"], rows[0]["n"]) == (low, high, 3)


CELL = Estimate(mean=1.0, ci95=(None, None), n=1)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_row_has_a_cell_for_each_column(n: int) -> None:
    with pytest.raises(ValidationError, match=f"row 'odd' of the table 'ragged' has {n} cells for 2 columns"):
        LabTable(title="ragged", columns=["a", "b"], rows=[LabRow(name="odd", cells=[CELL] * n)])
    assert LabTable(title="even", columns=["a", "b"], rows=[LabRow(name="even", cells=[CELL, None])]).rows


def test_a_curve_has_a_number_at_each_of_its_places() -> None:
    for x in ([], [1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(ValidationError, match=f"the curve 'a' has {len(x)} x and 2 y"):
            LabCurve(name="a", x=x, y=[CELL, CELL])
    assert LabCurve(name="a", x=[1.0, 2.0], y=[CELL, CELL]).x == [1.0, 2.0]


def test_a_result_that_is_cut_short_is_not_read() -> None:
    result, _ = run_laboratory(config("constructed"))
    whole = json.loads(result.to_json())
    study = whole["laboratory"]["studies"][0]
    del study["charts"][0]["curves"][0]["y"][-1]
    del study["tables"][0]["rows"][0]["cells"][-1]
    with pytest.raises(ValidationError) as error:
        Result.from_json(json.dumps(whole))
    assert error.value.error_count() == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"studies": ["konstructed"]}, ["studies.0", "'constructed'", "'konstructed'"]),
        ({"studies": ["shift", "shift"]}, ["studies ['shift', 'shift'] must be different"]),
        ({"studies": []}, ["studies"]),
        ({"seeds": [1, 1], "dimension": 1}, ["dimension", "(given 1)"]),
        ({"steps": 0}, ["steps", "greater than 0"]),
        # Intervals are Student's: nothing is resampled.
        ({"resamples": 50}, ["resamples"]),
    ],
)
def test_mistakes_in_settings_are_named(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        regression_config(**settings)
    assert all(word in str(error.value) for word in words), error.value


def test_steps_are_a_multiple_of_a_studys_own_and_never_none() -> None:
    assert [regression_config(steps=part).scaled(400) for part in (0.001, 0.5, 1.0, 2.5)] == [1, 200, 400, 1000]
