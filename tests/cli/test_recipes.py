"""The recipes of docs/recipes.md, run as a reader runs them: in order, in one folder, with a tiny model."""

import re
import shlex
from pathlib import Path

import pytest

from dualform.result import Result
from tests.cli.conftest import Done, run_command
from tests.tiny import save_tiny

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
MODEL = "smollm2-135m"
_BLOCK = re.compile(r"^```(python|bash|text)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF\n", flags=re.DOTALL | re.MULTILINE)


def recipes(markdown: str) -> dict[str, list[tuple[str, str]]]:
    """For each section that has a name in brackets, its fenced blocks as language and text."""
    parts = re.split(r"^\(recipes-([\w-]+)\)=$", markdown, flags=re.MULTILINE)[1:]
    return {name: _BLOCK.findall(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def shows(output: str, shown: str) -> bool:
    """Whether `output` contains the parts of `shown` between `...`, in order; white space may differ."""
    pattern = ".*".join(re.escape(" ".join(part.split())) for part in shown.split("..."))
    return re.search(pattern, " ".join(output.split())) is not None


def run_bash(block: str, model: Path) -> list[Done]:
    """Write the files of a bash block and run its `dualform` commands with `model`; anything else is an error."""
    for name, text in _FILE.findall(block):
        Path(name).write_text(text, encoding="utf-8")
    done = []
    for line in _FILE.sub("", block).splitlines():
        program, *arguments = shlex.split(line)
        assert program == "dualform", line
        assert MODEL in arguments, line
        done.append(run_command(*(model if argument == MODEL else argument for argument in arguments)))
    return done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("recipes") / "model", max_position_embeddings=2048)


RECIPES = recipes(PAGE.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("quick_page")
@pytest.mark.filterwarnings("default::UserWarning")  # printed, as at a shell
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_and_prints_what_the_page_shows(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    n_commands = 0
    last = Done(0, "", "")
    expected = 0
    blocks = RECIPES[name]
    for number, (language, block) in enumerate(blocks):
        if language == "python":
            exec(compile(block, f"{PAGE}:{name}", "exec"), {"__name__": "__main__"})
        elif language == "text":
            assert shows(last.out + " " + last.err, block.strip()), last.out + last.err
        else:
            # A command that the page shows to be refused is followed by its message.
            refused = blocks[number + 1 : number + 2] and "do not fit the context" in blocks[number + 1][1]
            expected = 2 if refused else 0
            done = run_bash(block, model)
            n_commands += len(done)
            assert [one.code for one in done] == [expected] * len(done), done[-1].err
            last = done[-1]
    assert n_commands > 0
    for path in tmp_path.glob("runs/*/result.json"):
        assert Result.from_json(path.read_text(encoding="utf-8"))


def test_the_page_has_the_recipes_it_announces() -> None:
    assert list(RECIPES) == ["many-classes", "sentences", "long-texts", "languages"]


def test_parts_of_shown_output_must_come_in_order() -> None:
    assert shows("Note: a\nb takes 12 tokens.", "Note: a b takes ... tokens.")
    assert not shows("tokens. takes", "takes ... tokens.")
