from pathlib import Path

import pytest

from dualform.cli.options import default_folder
from dualform.errors import ConfigError
from dualform.option import parse_names, parse_numbers
from dualform.seeds import parse_whole_numbers
from dualform.tasks.options import unescape


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("3", (3,)),
        ("0", (0,)),
        ("1..7", (1, 2, 3, 4, 5, 6, 7)),
        ("1,4,9", (1, 4, 9)),
        ("1..3,9", (1, 2, 3, 9)),
        (" 2 , 5 .. 6 ", (2, 5, 6)),
        ("4..4", (4,)),
    ],
)
def test_seeds_are_read_as_written(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_whole_numbers(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "1.5", "-1", "1..", "..3", "1...3", "1;2", "1,", "1-3"])
def test_what_is_no_seed_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_whole_numbers(text)

    assert f"seeds {text!r} should look like 3, 1..7 or 1,4,9" in str(caught.value)


def test_a_range_that_runs_backwards_is_named_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"seeds '9,3\.\.1': 3\.\.1 runs backwards; write 1\.\.3"):
        parse_whole_numbers("9,3..1")


def test_a_range_of_very_many_seeds_is_refused_before_it_is_expanded() -> None:
    assert len(parse_whole_numbers("1..10000")) == 10_000
    with pytest.raises(ConfigError, match=r"seeds '3,0\.\.10000': 0\.\.10000 are more than 10000 seeds"):
        parse_whole_numbers("3,0..10000")
    with pytest.raises(ConfigError, match="more than 10000 seeds"):
        parse_whole_numbers("0..99999999999999")


def test_numbers_are_read_as_written() -> None:
    assert parse_numbers("rates", "1e-4, 3e-4,0") == (1e-4, 3e-4, 0.0)


@pytest.mark.parametrize("text", ["", "a", "1e-4,", "1e-4;3"])
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_numbers("rates", text)

    assert f"rates {text!r} should be numbers with commas between, such as 1e-4,1e-3" in str(caught.value)


def test_names_lose_their_spaces() -> None:
    assert parse_names("zsl, icl,,ft ") == ("zsl", "icl", "ft")
    assert parse_names("") == ()
    assert parse_names(["zsl", "icl, ft"]) == ("zsl", "icl", "ft")


def test_line_breaks_may_be_written_with_a_backslash() -> None:
    assert unescape(r"Review: {text}\nSentiment:\t") == "Review: {text}\nSentiment:\t"
    assert unescape(None) is None


@pytest.mark.parametrize(
    ("models", "task", "more", "folder"),
    [
        (("smollm2-135m",), "reviews", (), "runs/smollm2-135m-reviews"),
        (("smollm2-135m",), "sst2", ("dai2023",), "runs/smollm2-135m-sst2-dai2023"),
        (("./models/mine/",), "../data/tickets.csv", (), "runs/mine-tickets"),
        (("org/name",), "owner/data:config", (), "runs/name-data-config"),
        (("org/name", "other"), "sst2", ("stability",), "runs/name-other-sst2-stability"),
    ],
)
def test_a_run_is_called_by_models_and_task(
    models: tuple[str, ...], task: str, more: tuple[str, ...], folder: str
) -> None:
    assert default_folder(models, task, *more) == Path(folder)
