"""A command generated from a configuration: its options are those declared with the fields."""

import re
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from dualform.cli.generated import first_sentence, flags_of, settings_of, study_command, typed_names
from dualform.configuration import InvalidSettingsError, checked
from dualform.option import DATA, FOLDING, OUTPUT, Option
from dualform.seeds import Seeds
from dualform.studies.comparison.config import ComparisonConfig, comparison_config


class Inner(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    depth: Annotated[int, Option(FOLDING, ("--inner-depth",))] = 3
    """How deep."""
    strength: Annotated[float | Literal["auto"], Option(FOLDING)] = "auto"
    """A number, or auto. And more about it."""


class Shared(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    source: Annotated[str, Option(DATA, argument=2)]
    """Where from."""
    seeds: Annotated[Seeds, Option(single="--seed")] = (1, 2, 3)
    """Which seeds."""
    patience: int = 2
    """How patient, in [rates]."""


class Toy(Shared):
    without_options: ClassVar[frozenset[str]] = frozenset({"hidden", "inner.depth"})

    model: Annotated[str, Option(DATA, argument=1)]
    """What is asked."""
    rates: tuple[float, ...] = (1e-4, 0.03, 10.0)
    """Rates tried."""
    colours: tuple[Literal["red", "green"], ...] = ("red", "green")
    """Of red,green."""
    some_limit: Annotated[int | None, Option(null="all")] = Field(default=5, ge=1)
    """Most of them."""
    cold: bool = False
    """Whether it is cold."""
    heads: Annotated[bool, Option(names=("--heads/--tails",))] = True
    """Which side."""
    files: Annotated[tuple[str, ...], Option(OUTPUT, repeated=True)] = ()
    """Files, one at a time."""
    hidden: int = 1
    """An internal setting."""
    inner: Inner = Inner(strength=0.5)
    """A group."""


GIVEN: list[dict[str, Any]] = []


@study_command(Toy)
def toy(settings: dict[str, Any], loud: bool = False) -> None:
    """Toy with it."""
    GIVEN.append({**settings, "loud": loud})


@pytest.fixture
def shell() -> CliRunner:
    GIVEN.clear()
    return CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200", "NO_COLOR": "1"})


def app() -> typer.Typer:
    app = typer.Typer(rich_markup_mode="rich")
    app.command()(toy)
    return app


def test_what_is_given_reaches_the_fields_by_their_types(shell: CliRunner) -> None:
    words = "m s --seeds 2..3,7 --rates 1e-2,3 --colours green --some-limit 0 --cold --tails --loud --strength 0.25"
    done = shell.invoke(app(), [*words.split(), "--files", "a,b.txt", "--files", "c.txt", "--patience", "4"])

    assert done.exit_code == 0, done.output
    assert GIVEN == [
        {
            "model": "m",
            "source": "s",
            "seeds": (2, 3, 7),
            "rates": (0.01, 3.0),
            "colours": ("green",),
            "some_limit": 0,
            "cold": True,
            "heads": False,
            "files": ("a,b.txt", "c.txt"),
            "patience": 4,
            "inner": {"strength": 0.25},
            "loud": True,
        }
    ]


def test_what_is_not_given_is_left_to_the_configuration(shell: CliRunner) -> None:
    assert shell.invoke(app(), ["m", "s"]).exit_code == 0
    assert GIVEN == [{"model": "m", "source": "s", "loud": False}]


def test_one_seed_is_a_list_of_one_and_not_given_with_several(shell: CliRunner) -> None:
    assert shell.invoke(app(), ["m", "s", "--seed", "0"]).exit_code == 0
    assert GIVEN[0]["seeds"] == (0,)
    done = shell.invoke(app(), ["m", "s", "--seed", "0", "--seeds", "1..2"])
    assert (done.exit_code, len(GIVEN)) == (2, 1)
    assert "--seed 0 and --seeds 1..2 were both given: choose one." in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rates", "fast"], "rates 'fast' should be numbers"),
        (["--seeds", "3..1"], "seeds '3..1': 3..1 runs backwards"),
        (["--strength", "x"], "strength 'x' should be a number such as 0.01, or auto"),
        (["--patience", "x"], "Input should be a valid integer"),
        (["--hidden", "2"], "No such option"),
        (["--inner-depth", "2"], "No such option"),
        (["--depth", "2"], "No such option"),
    ],
)
def test_what_cannot_be_read_is_named(shell: CliRunner, words: list[str], message: str) -> None:
    done = shell.invoke(app(), ["m", "s", *words])
    assert (done.exit_code, GIVEN) == (2, [])
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.output).split())


@study_command(Toy)
def checked_toy(settings: dict[str, Any]) -> None:
    """Toy that is checked."""
    checked(Toy, {"inner": {"strength": "loud"}, **settings})


def test_an_invalid_value_is_named_by_the_option_that_was_typed(shell: CliRunner) -> None:
    checking = typer.Typer()
    checking.command()(checked_toy)

    done = shell.invoke(checking, ["m", "s", "--some-limit", "0", "--colours", "red,blue"])
    assert done.exit_code == 2
    assert "--some-limit: Input should be greater than or equal to 1 (given 0)" in done.output
    assert "--colours, value 2: Input should be 'red' or 'green' (given 'blue')" in done.output
    # What was not typed keeps the field's name.
    assert "inner.strength" in done.output
    assert "--strength" not in done.output


def test_an_option_of_a_group_is_named_as_it_was_typed() -> None:
    settings = settings_of(ComparisonConfig)
    given = {"fold_texts": 2, "seed": 3, "limit": None}
    assert typed_names(settings, given) == {"fold.texts": "--fold-texts", "seeds": "--seed"}
    with pytest.raises(InvalidSettingsError, match=r"^fold\.texts: ") as refused:
        comparison_config("m", "t", fold={"texts": 2})
    assert str(refused.value.renamed(typed_names(settings, given))).startswith("--fold-texts: Input should be ")


def test_help_is_the_first_sentence_of_the_description_and_the_default(shell: CliRunner) -> None:
    output = shell.invoke(app(), ["--help"]).output
    lines = {match[1]: " ".join(match[2].split()) for match in re.finditer(r"│[ *]*(-{0,2}\w[\w-]*)(.*?)│", output)}

    assert lines["--rates"] == "<str> Rates tried (1e-4,3e-2,10)"
    assert lines["--colours"] == "<str> Of red,green (all)"
    assert lines["--seeds"] == "<str> Which seeds (1..3)"
    assert lines["--seed"] == "<int> A single value, in place of --seeds"
    assert lines["--some-limit"] == "<int> Most of them (5; 0 for all)"
    assert lines["--strength"] == "<str> A number, or auto (0.5)"
    assert lines["--patience"] == "<int> How patient, in [rates] (2)"
    assert lines["--cold"] == "--no-cold <bool> Whether it is cold"
    assert lines["--heads"] == "--tails <bool> Which side (heads)"
    assert lines["model"] == "<str> What is asked [required]"
    assert re.findall(r"╭─ (.*?) ─", output) == [
        "Arguments", "Options", "Protocol", "Folding", "Output"
    ]  # fmt: skip
    places = [output.index(name) for name in (" model ", " source ", "--rates", "--cold", "--seeds", "--strength")]
    assert places == sorted(places)


def test_a_command_may_take_a_few_fields_alone(shell: CliRunner) -> None:
    @study_command(Toy, only=("patience", "inner"))
    def few(settings: dict[str, Any]) -> None:
        """Few of them."""
        GIVEN.append(settings)

    app = typer.Typer()
    app.command()(few)
    assert shell.invoke(app, ["--patience", "3", "--strength", "auto"]).exit_code == 0
    assert GIVEN == [{"patience": 3, "inner": {"strength": "auto"}}]
    assert shell.invoke(app, ["--rates", "1"]).exit_code == 2


def test_the_option_of_each_field_is_known() -> None:
    flags = flags_of(Toy)
    assert flags["inner.strength"] == "--strength"
    assert "inner.depth" not in flags
    assert "model" not in flags


def test_a_first_sentence_ends_at_its_full_stop() -> None:
    assert first_sentence("As arXiv:2212.10559 does,\nwith `a.b`.  More.") == "As arXiv:2212.10559 does, with a.b"
    assert first_sentence("") == ""
