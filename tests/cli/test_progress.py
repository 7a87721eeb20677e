"""The bar shows the progress of a study, and nothing without a terminal."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from dualform.cli.progress import Bar, progress_bar


@pytest.fixture
def progress() -> Progress:
    return Progress(console=Console(file=io.StringIO()), disable=True)


def test_the_bar_counts_completed_and_remaining_work(progress: Progress) -> None:
    bar = Bar(progress)
    (task,) = progress.tasks
    assert task.total is None

    bar.start(10)
    bar.advance(4, "seed 1: reading queries")

    assert (task.completed, task.total, task.description) == (4, 10, "seed 1: reading queries")


def test_remaining_work_is_added_to_completed_work(progress: Progress) -> None:
    # A study says anew what lies ahead once it knows: behind the choice of a seed, and with each model.
    bar = Bar(progress)
    (task,) = progress.tasks

    bar.start(10)
    bar.advance(10, "choosing a seed: 2")
    bar.start(30)
    bar.advance(15, "seed 2: adapting ft")

    assert task.completed / (task.total or 1) == pytest.approx(25 / 40)
    bar.advance(15, "seed 2: reading queries")
    assert task.completed == task.total


def test_nothing_is_shown_where_standard_error_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        bar.start(2)
        bar.advance(1, "one")

    assert capsys.readouterr() == ("", "")
