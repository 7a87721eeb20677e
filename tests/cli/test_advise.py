"""`dualform advise`, end to end on a tiny checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done, result_of

Command = Callable[..., Done]
TABLE = ["gpt2", "tickets.csv", "--text", "body", "--label", "topic"]
SMALL = [
    *TABLE,
    "--labels",
    "3,6",
    "--seeds",
    "1,2",
    "--limit",
    "8",
    "--learners",
    "zsl,icl,probe",
    "--resamples",
    "20",
]


def test_advice_is_printed_and_kept(dualform: Command, out: Path, real_page: None) -> None:
    done = dualform("advise", *SMALL, "--out", out)
    assert done.code == 0, done.err
    assert "Use " in done.out
    assert "Recommended learner by number of labels" in done.out
    advice = result_of(out)["advice"]
    assert advice["budgets"] == [3, 6]
    assert "What to use" in (out / "report.html").read_text(encoding="utf-8")


def test_it_can_be_planned_and_swept(dualform: Command, out: Path, tmp_path: Path) -> None:
    planned = dualform("plan", "advise", *SMALL, "--json")
    assert planned.code == 0, planned.err
    assert json.loads(planned.out)["parts"]
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "study: advise\nmodels: [gpt2]\ntasks: [{task: tickets.csv, text: body, label: topic}]\nseeds: 1,2\n"
        "settings: {budgets: [3, 6], limit: 8, learners: [zsl, tfidf], resamples: 20}\n",
        encoding="utf-8",
    )
    done = dualform("sweep", grid, "--out", out, "--workers", "1", "--store", tmp_path / "store")
    assert done.code == 0, done.err
    [group] = json.loads((out / "sweep.json").read_text(encoding="utf-8"))["groups"]
    assert group["result"]["advice"]["budgets"] == [3, 6]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--labels", "none"], "labels 'none' should look like"),
        (["--labels", "5000"], "labels 5000"),
        (["--learners", "zsl"], "at least two"),
    ],
)
def test_a_mistake_exits_2_and_names_the_value(given: list[str], words: str, dualform: Command, out: Path) -> None:
    done = dualform("advise", *TABLE, *given, "--out", out)
    assert done.code == 2
    assert words in done.message
    assert not (out / "result.json").exists()


def test_the_learners_are_listed_with_what_they_do(dualform: Command) -> None:
    rows = json.loads(dualform("learners", "--json").out)
    assert [row["name"] for row in rows][:3] == ["zsl", "icl", "ft"]
    assert all(row["title"] and row["meaning"] for row in rows)
    done = dualform("learners")
    assert done.code == 0
    assert "tfidf" in done.out
