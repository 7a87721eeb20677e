import re
import shlex
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from pydantic import BaseModel
from tools import sentences
from tools.result_reference import described, kind, models, reference

import dualform
from dualform import errors, result
from dualform.cli.main import app
from dualform.learners.base import AdaptationContext
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.report.measures import known_controls, known_measures
from dualform.result import Result
from dualform.runs.sweep_config import SweepConfig, expand, read_sweep_file
from dualform.studies.comparison.config import CHEAP_CONTROLS
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.summary import examples_table
from dualform.studies.controls import CONTROLS
from dualform.studies.facts import TaskDescription
from dualform.studies.laboratory.result import Laboratory
from dualform.studies.laboratory.run import laboratory_table
from dualform.studies.momentum.config import Arm, momentum_config
from dualform.studies.momentum.result import MomentumResult
from dualform.studies.momentum.summary import ArmRun, momentum_table
from dualform.studies.selection.choosing import SETS
from dualform.studies.selection.trials import AllTrials, Budget, SeedTrials, trials_table
from dualform.studies.stability.summary import ModelRuns, RunAnswers, runs_table
from dualform.studies.study import STUDIES
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.sources import load_task
from tests.studies.known_controls import CEILINGS, FLOORS
from tests.tasks.conftest import build
from tests.test_readme import python_blocks, run_blocks
from tests.tiny import FAMILIES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = [STUDIES[name].result() for name in STUDIES.own]
# Bases, and one that adds no field, have no section.
MODELS = [model for model in models() if model.__name__ not in {"Record", "_Record", "ResultOfAbsentStudy"}]


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(markdown: str, title: str) -> str:
    """The text under the heading `title`, up to the next heading of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", markdown, flags=re.DOTALL | re.MULTILINE)
    assert found is not None, f"there is no heading {title!r}"
    return found[1]


def first_column(markdown: str) -> list[str]:
    """What stands in backticks in the first cell of each table row."""
    return re.findall(r"^\| `([^`]+)` \|", markdown, flags=re.MULTILINE)


def documented_objects(markdown: str) -> list[str]:
    return re.findall(r"^\.\. auto(?:function|class|exception):: (\S+)$", markdown, flags=re.MULTILINE)


def shell_commands(markdown: str) -> list[list[str]]:
    """The arguments of each `dualform ...` line in the fenced bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "dualform"]


def fenced(markdown: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)


def places(markdown: str) -> set[str]:
    """What a page can be linked to at: names in brackets, and headings of one word."""
    headings = re.findall(r"^#+ (\w+)$", markdown, flags=re.MULTILINE)
    return {*re.findall(r"^\(([\w-]+)\)=$", markdown, flags=re.MULTILINE), *(one.lower() for one in headings)}


def broken_links(pages: dict[str, str]) -> list[str]:
    """Links within the documentation that lead nowhere, each behind the page that has it."""
    everywhere = {place for markdown in pages.values() for place in places(markdown)}
    broken = []
    for name, markdown in pages.items():
        prose = re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            file, _, place = target.partition("#")
            if "://" in target:
                continue
            found = pages.get(file.removesuffix(".md")) if file else ""
            if found is None or (place and place not in (places(found) if file else everywhere)):
                broken.append(f"{name}: {target}")
    return broken


def has_field(model: Any, path: list[str]) -> bool:
    """Whether a path such as `["accuracy", "zsl", "mean"]` leads to a field; any name will do for a mapping's key."""
    if not path:
        return True
    if isinstance(model, type) and issubclass(model, BaseModel):
        found = model.model_fields.get(path[0])
        return found is not None and has_field(found.annotation, path[1:])
    parts = [part for part in get_args(model) if part is not type(None)]
    if getattr(model, "__origin__", None) in (dict, list, tuple):
        return has_field(parts[-1], path[1:] if model.__origin__ is dict else path)
    return any(has_field(part, path) for part in parts) or model is Any


def complaint(arguments: list[str]) -> str:
    """What the command line says against these arguments, which are read but not acted upon; empty if nothing."""
    command: Any = typer.main.get_command(app)
    rest = arguments
    while hasattr(command, "get_command"):
        # A group by itself would leave all behind its name unread.
        name, *rest = rest or [""]
        command = command.get_command(None, name)
        if command is None:
            return f"no command {name}"
    try:
        command.make_context(name, rest)
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.real
@pytest.mark.usefixtures("shallow_packaged_model")
def test_every_python_block_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_blocks(page("guide"), str(DOCS / "guide.md")) > 5


def test_the_second_learner_of_its_page_reads_behind_two_copies(tiny, tokenizer):
    namespace: dict[str, Any] = {"__name__": "__main__"}
    [block] = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", page("adding_learner"), re.DOTALL | re.MULTILINE)
        if "InContextTwice" in block
    ]
    exec(block, namespace)
    lm = LanguageModel.wrap(tiny, tokenizer, "tiny")
    task = build([0, 1, 0, 1], words=("negative", "positive"))
    encoder = Encoder(lm, task)
    shown = draw_demonstrations(task, 2, seed=1)
    encoded = encoder.demonstrations(shown)
    before = {name: weight.clone() for name, weight in tiny.state_dict().items()}
    context = AdaptationContext(SimpleNamespace(lm=lm, task=task, encoder=encoder), SimpleNamespace(encoded=encoded))
    learner = namespace["InContextTwice"]()

    adapted = learner.adapt(context)

    assert (adapted.learner, adapted.n_prefix) == ("icl2", 2 * len(encoded.prefix) - len(encoder.opening))
    assert learner.prefix_length(context) == adapted.n_prefix
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.state_dict().items())


def test_every_python_block_about_tasks_and_sweeps_runs():
    for name in ("adding_task", "sweeps"):
        assert run_blocks(page(name), str(DOCS / f"{name}.md")) > 0


def test_the_table_to_get_started_with_is_split_as_the_page_says(tmp_path):
    (table,) = re.findall(r"^cat > mine\.csv <<'EOF'\n(.*?)^EOF$", page("get_started"), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.csv").write_text(table, encoding="utf-8")
    task = load_task(tmp_path / "mine.csv", text="body", label="topic")
    assert {split: len(examples) for split, examples in task.splits.items()} == {
        "train": 34,
        "selection": 8,
        "report": 18,
    }
    assert "34 rows are for demonstrations, 8 choose learning rates, 18 are reported" in " ".join(
        page("get_started").split()
    )


def test_every_grid_shown_is_a_sweep(tmp_path):
    grids = [
        (path.stem, block)
        for path in sorted(DOCS.glob("*.md"))
        for block in fenced(page(path.stem), "yaml")
        if "models:" in block
    ]
    assert len(grids) > 2
    for name, grid in grids:
        config = SweepConfig(**yaml.safe_load(grid))
        assert expand(config), name
    listed = tmp_path / "sizes.py"
    (block,) = (block for _, block in python_blocks(page("sweeps")))
    listed.write_text(block, encoding="utf-8")
    assert len(read_sweep_file(listed)[1]) == 3


def test_a_grid_with_an_unknown_key_is_none():
    with pytest.raises(ValueError, match="modles"):
        SweepConfig(**yaml.safe_load("modles: [gpt2]\ntasks: [sst2]\n"))


def test_every_link_within_the_documentation_leads_somewhere():
    assert broken_links({path.stem: page(path.stem) for path in DOCS.glob("*.md")}) == []


def test_every_image_of_the_documentation_exists_and_is_described():
    shown = {
        (path.stem, image): described
        for path in DOCS.glob("*.md")
        for image, described in re.findall(r"^```{image} (\S+)\n:alt: ([^\n]*)\n```$", page(path.stem), re.MULTILINE)
    }
    assert len(shown) > 3
    assert [image for _, image in shown if not (DOCS / image).is_file()] == []
    assert all(shown.values())


def test_the_front_pages_give_each_reader_a_path_of_three_pages():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (page("index"), readme):
        for reader in ("engineer", "researcher", "teacher"):
            (row,) = [line for line in text.splitlines() if line.startswith("|") and f"**{reader}**" in line]
            assert 1 <= len(re.findall(r"\]\(", row)) <= 3


def test_a_link_that_leads_nowhere_is_found():
    pages = {
        "a": "(here)=\n# A\n[b](b.md) [b](b.md#there) [up](#there) [web](https://example.org/x#y)\n",
        "b": "(there)=\n[a](a.md#there) [c](c.md) [no](#nowhere)\n```text\n[code](code.md)\n```\n",
    }
    assert broken_links(pages) == ["b: a.md#there", "b: c.md", "b: #nowhere"]


def test_every_field_that_the_papers_numbers_are_said_to_stand_in_is_one_of_a_result():
    roots = "accuracy|similarity|controls|stability|selection|momentum|laboratory|folding|trials|warnings|task|fold"
    named = re.findall(rf"`((?:{roots})(?:\.[\w*]+|\[\])*)`", page("paper_to_command"))
    # A model's, learner's or control's name stands where a key stands; `[]` is any of a list.
    paths = {name: [part for part in name.replace("[]", "").split(".") if part != "*"] for name in named}
    assert len(paths) > 20
    assert [name for name, path in paths.items() if not any(has_field(kind, path) for kind in RESULTS)] == []


def test_a_field_that_no_result_has_would_be_noticed():
    assert has_field(Result, ["similarity", "sim_aou", "per_layer"])
    assert not has_field(Result, ["similarity", "sim_aou", "per_lyer"])
    assert not has_field(Result, ["similarty"])
    assert has_field(MomentumResult, ["momentum", "arms", "perplexity"])
    assert not has_field(MomentumResult, ["momentum", "arms", "perplexities"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_about_families_names_each_that_is_tested(family):
    assert family.split("-")[0] in page("adding_family")


def test_every_command_shown_is_one_that_the_command_line_accepts():
    shown = [arguments for path in sorted(DOCS.glob("*.md")) for arguments in shell_commands(page(path.stem))]
    complaints = {" ".join(arguments): complaint(arguments) for arguments in shown}
    assert len(complaints) > 3
    assert {command: said for command, said in complaints.items() if said} == {}


def test_a_command_with_a_misspelt_option_is_refused():
    shown = shell_commands("```bash\ndualform compare gpt2 sst2 --sead 1\n```\n```python\ndualform = 1\n```\n")
    assert shown == [["compare", "gpt2", "sst2", "--sead", "1"]]
    assert "--sead" in complaint(shown[0])
    assert "--ata" in complaint(["momentum", "train", "prose.txt", "--to", "runs/momentum", "--ata", "0.3"])
    assert complaint(["momentum", "tarin", "prose.txt"]) == "no command tarin"
    assert complaint(["momentum"]) == "no command "


def test_the_command_line_page_is_what_help_prints():
    command = [sys.executable, str(ROOT / "tools" / "cli_reference.py")]
    printed = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout
    assert page("cli") == printed, "run: python tools/cli_reference.py > docs/cli.md"


def test_the_command_line_page_is_plain_text_of_fixed_width():
    blocks = re.findall(r"^```text\n(.*?)^```$", page("cli"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 1
    assert max(len(line) for block in blocks for line in block.splitlines()) == 100
    assert "\x1b" not in page("cli")


def test_the_api_page_holds_every_public_name_and_no_other():
    listed = [name for name in documented_objects(page("api")) if name.count(".") == 1]
    assert sorted(listed) == [f"dualform.{name}" for name in dualform.__all__ if name != "__version__"]


def test_the_api_page_holds_every_error():
    listed = {name.rpartition(".")[2] for name in documented_objects(page("api"))}
    named = {name for name, found in vars(errors).items() if isinstance(found, type)}
    assert named - listed == set()


def test_every_object_of_the_api_page_exists():
    for name in documented_objects(page("api")):
        # An error names the one that has moved or has another name now.
        resolve_name(name)


def test_a_name_that_is_not_listed_would_be_noticed():
    assert documented_objects(".. autofunction:: dualform.sim_aou\n   :members:\nautoclass:: dualform.Task\n") == [
        "dualform.sim_aou"
    ]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_result_page_lists_the_fields_of_each_model(model):
    own = [model.model_fields[name].alias or name for name in model.__annotations__]
    assert first_column(section(page("result"), model.__name__)) == own


def test_the_result_pages_tables_are_those_of_the_schema():
    assert reference(page("result")) == page("result"), "run: python tools/result_reference.py"


def test_the_catalogue_lists_every_sentence_that_can_be_printed():
    assert sentences.catalogue() == page("sentences"), "run: python tools/sentences.py"


def test_the_catalogue_finds_sentences_in_messages_templates_and_scripts(tmp_path: Path):
    (tmp_path / "a.py").write_text(
        '"""Not this text."""\nraise ValueError(f"seed {n} is too large")\nkey = "accuracy.icl"\n'
    )
    (tmp_path / "b.html.j2").write_text('<p title="Point at a token">Open all <b>{{ n }}</b></p><style>a b {}</style>')
    (tmp_path / "c.js").write_text('// not this text\nshow("no number here");')
    assert sentences.sentences(tmp_path / "a.py") == ["seed {n} is too large"]
    assert sentences.sentences(tmp_path / "b.html.j2") == ["Point at a token", "Open all"]
    assert sentences.sentences(tmp_path / "c.js") == ["no number here"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_of_a_file_is_described_in_the_source(model):
    assert described(model).keys() == set(model.__annotations__)


def test_a_table_follows_the_schema_and_leaves_the_prose_alone():
    before = "(there)=\n### Estimate\n\nProse.\n\n| field | type | what it is |\n|---|---|---|\n"
    made = reference(f"{before}| `old` | x | y |\n\n### Else\n")
    assert made.startswith(before)
    assert first_column(made) == ["mean", "ci95", "n"]
    assert made.endswith(" |\n\n### Else\n")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float | None, "number or null"),
        (list[result.Number], "list of numbers or nulls"),
        (list[result.Number] | None, "list of numbers or nulls, or null"),
        (tuple[result.Number, result.Number], "two numbers or nulls"),
        (dict[result.Seed, list[int]], "seed → list of integers"),
        (dict[result.Control, dict[result.Measure, result.Similarity]], "control → measure → [Similarity](#there)"),
        (dict[str, Any] | None, "object or null"),
        (result.Estimate | None, "[Estimate](#there) or null"),
    ],
)
def test_types_are_put_in_words(annotation, words):
    assert kind(annotation, {"Estimate": "there", "Similarity": "there"}) == words


def test_a_section_ends_at_the_next_heading():
    text = "# A\n| `a` | x |\n## B\n| `b` | y |\n| `c` `d` |\n"
    assert (first_column(section(text, "A")), first_column(section(text, "B"))) == (["a"], ["b"])
    with pytest.raises(AssertionError, match="there is no heading 'C'"):
        section(text, "C")


def test_the_result_page_lists_the_columns_of_the_examples():
    asked = two_questions()
    outcome = SeedRecord(
        seed=1,
        inputs="",
        rows=(),
        n_tokens=0,
        log_probabilities={"zsl": torch.zeros(len(asked.examples), 2)},
        measures={},
        costs={},
    )
    listed = first_column(section(page("result"), "examples.parquet"))
    assert kinds_of_column(listed) == kinds_of_column(examples_table(asked, [outcome]).column_names)


def test_the_result_page_lists_the_columns_of_a_stability_study():
    asked = two_questions()
    answers = torch.zeros(len(asked.examples), 2)
    run = RunAnswers("icl", seed=1, order=0, labels="true", answers=answers, content_free=answers[:1], rate=None)
    table = runs_table(asked, [ModelRuns("tiny", {}, (run,), ())])
    listed = first_column(section(page("result"), "Of a stability study"))
    assert kinds_of_column(listed) == kinds_of_column(table.column_names)


def test_the_result_page_lists_the_columns_of_a_selection_study():
    asked = two_questions()
    answers = torch.zeros(1, len(asked.examples), 2)
    tables = dict.fromkeys(SETS, answers)
    seed = SeedTrials(1, (), 5, 5, tables, tables, (1e-3,), (), {})
    found = AllTrials(dict.fromkeys(SETS, asked.examples), (seed,), answers[0], Budget({}, {}, {}), {}, ())
    listed = first_column(section(page("result"), "Of a selection study"))
    assert kinds_of_column(listed) == kinds_of_column(trials_table(asked, found).column_names)


def test_the_result_page_lists_the_columns_of_a_momentum_study():
    task = build([0, 1], words=("negative", "positive"))
    config = momentum_config(corpus=("a.txt",), validation=("b.txt",), test=("c.txt",))
    answers = torch.zeros(len(task.split("test")), 2)
    run = ArmRun({"toy": answers}, {"losses": {"64": 4.0}})
    table = momentum_table(config, {(Arm("vanilla"), 1): run}, {"toy": task})
    assert table.num_rows == 1 + len(answers)
    assert first_column(section(page("result"), "Of a momentum study")) == table.column_names


def test_the_result_page_lists_the_columns_of_the_laboratory():
    table = laboratory_table(Laboratory(studies=[]))
    assert first_column(section(page("result"), "Of the laboratory")) == table.column_names


def two_questions() -> TaskDescription:
    task = build([0, 1], words=("negative", "positive"))
    return TaskDescription(task, task.split("test"), 1, "test", "validation", 5.0, 2048, ())


def kinds_of_column(names: list[str]) -> list[str]:
    """Names without the label words, each once."""
    return list(dict.fromkeys(name.partition(":")[0] for name in names))


def measure_entry(key: str) -> str:
    """A measure's section of the page: its heading names the key."""
    found = re.search(
        rf"^### [^\n]*\(`{key}`\)[^\n]*\n(.*?)(?=^#|\Z)", page("measures"), flags=re.DOTALL | re.MULTILINE
    )
    assert found is not None, f"docs/measures.md has no entry for {key!r}"
    return found[0]


@pytest.mark.parametrize("key", [measure.name for measure in known_measures()])
def test_every_measure_has_an_entry_with_its_definition_range_chance_limits_and_source(key):
    entry = measure_entry(key)
    assert "$$" in entry
    assert [word for word in ("Range", "Chance", "Misleads", "Source") if f"**{word}**" not in entry] == []


def test_the_measures_page_lists_every_control_under_its_kind():
    text = section(page("measures"), "Controls")
    floors, ceilings, comparisons = (
        first_column(part) for part in re.split(r"^\*\*(?:Floors|Ceilings|Comparisons)\.\*\*", text, flags=re.M)[1:]
    )
    assert set(floors) == set(FLOORS) - {"chance"}
    assert set(ceilings) == set(CEILINGS)
    assert {*floors, *ceilings, *comparisons} == {control.name for control in known_controls()} - {"chance"}
    assert {*floors, *ceilings, *comparisons} - {"batch_sequential", "random_released"} == (
        set(CONTROLS.own) - {"rates"}
    )


def test_the_measures_page_says_which_controls_run_by_default():
    listed = re.search(r"six by default \(([^)]*)\)", page("measures").replace("\n", " "))
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(CHEAP_CONTROLS)


@pytest.mark.parametrize("control", [*(control.name for control in known_controls()), "rates"])
def test_the_result_page_or_the_measures_page_names_every_control(control):
    assert f"`{control}`" in page("result") + page("measures")
