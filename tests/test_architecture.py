import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dualform
from dualform._moved_names import MOVED

PACKAGE = Path(__file__).parent.parent / "src" / "dualform"

# Stairs only go down; parts of one floor do not know each other.
FLOORS = [
    {"attention_record", "configuration", "errors", "files", "package_index", "progress", "result", "sweep_result"}
    | {
        "option",
        "paired_t",
        "plain_text",
        "registry",
        "schema_versions",
        "yaml_text",
        "seeds",
        "source_digest",
        "redaction",
    }
    | {"_moved_names", "_version"},
    {"ops", "tasks", "report"},
    {"models"},
    {"learners", "lab"},
    {"studies"},
    {"runs"},
    {"cli"},
    {"__init__", "__main__"},
]
GROUND = FLOORS[0]
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}

# Each costs seconds or is optional; they load when they are used.
HEAVY = {"altair", "datasets", "lm_eval", "peft", "sklearn"}


def part_of(module: str) -> str:
    """`dualform.ops.similarity` -> `ops`; the package itself is `__init__`."""
    return [*module.split("."), "__init__"][1]


def imported_modules(source: str) -> list[tuple[int, str]]:
    """Line and dotted name of all of ours that `source` imports, in functions and type-checking blocks too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            # `from dualform import ops` is an import of `dualform.ops`.
            names = [f"dualform.{alias.name}" for alias in node.names] if name == "dualform" else [name]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            found += [(node.lineno, text) for text in texts if isinstance(text, str)]
    return [(line, name) for line, name in found if name.startswith(".") or name.split(".")[0] == "dualform"]


def wrong_imports(module: str, source: str) -> list[str]:
    """A sentence for each import in `source` that does not go down."""
    part = part_of(module)
    if part not in FLOOR_OF:
        return [f"{module}: {part} is on no floor; give it one in FLOORS"]
    sentences = []
    for line, name in imported_modules(source):
        where = f"{module}:{line}"
        target = part_of(name)
        if name.startswith("."):
            sentences.append(f"{where}: relative import of {name}")
        elif target not in FLOOR_OF:
            sentences.append(f"{where}: {name} is not a module of dualform: import from the module that defines it")
        elif not (target == part or FLOOR_OF[target] < FLOOR_OF[part] or (part in GROUND and target in GROUND)):
            sentences.append(f"{where}: {part} imports {name}, which is not below it")
    return sentences


def modules() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(dotted[:-1] if dotted[-1] == "__init__" else dotted)
        found.append((name, path.read_text(encoding="utf-8")))
    return found


def test_imports_run_downwards_only():
    found = modules()
    assert len(found) > len(GROUND)
    assert [sentence for module, source in found for sentence in wrong_imports(module, source)] == []


def loaded_with(source: str, known: set[str]) -> set[str]:
    """Modules of ours that are imported when `source` is: not in functions, and not for type checkers alone."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & known) or {node.module}
        waiting += ast.iter_child_nodes(node)
    return found & known


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, the first one again at the end; empty without a circle."""
    done: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for target in sorted(imports.get(module, ())):
                if circle := follow(target, [*path, module]):
                    return circle
            done.add(module)
        return []

    return next(filter(None, (follow(module, []) for module in imports)), [])


def test_no_module_imports_itself_by_way_of_others():
    sources = dict(modules())
    imports = {name: loaded_with(source, set(sources)) - {name} for name, source in sources.items()}
    assert sum(map(len, imports.values())) > len(sources)
    assert circle_in(imports) == []


def test_a_planted_circle_is_found():
    sources = {
        "dualform.a": "from dualform import b",
        "dualform.b": "class C:\n    import dualform.c",
        "dualform.c": "try:\n    from dualform.a import name\nexcept ImportError:\n    pass",
        "dualform.d": "if TYPE_CHECKING:\n    from dualform import e\ndef f():\n    import dualform.e",
        "dualform.e": "from dualform.d import f",
    }
    imports = {name: loaded_with(source, set(sources)) for name, source in sources.items()}
    assert circle_in(imports) == ["dualform.a", "dualform.b", "dualform.c", "dualform.a"]
    assert circle_in({**imports, "dualform.c": set()}) == []


def between_studies(sources: dict[str, str]) -> set[tuple[str, str]]:
    """(importer, study): a module in a study's folder or next to the folders, and another study that it imports."""
    studies = {name.split(".")[2] for name in sources if re.fullmatch(r"dualform\.studies\.\w+\.\w+", name)}
    found = set()
    for name, source in sources.items():
        if not name.startswith("dualform.studies."):
            continue
        for _, target in imported_modules(source):
            study = [*target.split("."), "", ""][2] if target.startswith("dualform.studies.") else ""
            if study in studies and study != name.split(".")[2]:
                found.add((name.removeprefix("dualform.studies."), study))
    return found


# What is still shared from inside a study's folder. It belongs next to the folders: add nothing here.
BORROWED = {
    # `dualform fold` reports with a comparison's result, table and page, which show a fold in turn.
    *((f"fold.{module}", "comparison") for module in ("config", "run", "words")),
    ("comparison.answer", "fold"),
    ("comparison.page", "fold"),
    # Types and records of one study in what several share.
    ("against_words", "folding"),
    ("controls", "comparison"),
    ("published", "momentum"),
}


def test_a_study_imports_nothing_of_another():
    assert between_studies(dict(modules())) == BORROWED


def test_an_import_of_another_study_would_be_found():
    sources = {
        "dualform.studies.a.run": "from dualform.studies.b.words import c\nfrom dualform.studies.a import d",
        "dualform.studies.b.words": "def f():\n    from dualform.studies.shared import e",
        "dualform.studies.shared": "from dualform.studies.b import words",
    }
    assert between_studies(sources) == {("a.run", "b"), ("shared", "b")}


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        (
            "dualform.ops.a",
            "import torch\nfrom dualform.models.loading.load import load",
            "dualform.ops.a:2: ops imports dualform.models.loading.load, which is not below it",
        ),
        (
            "dualform.ops.a",
            "from dualform.tasks.task import Task",
            "dualform.ops.a:1: ops imports dualform.tasks.task, which is not below it",
        ),
        (
            "dualform.report",
            "import dualform.ops.a as a",
            "dualform.report:1: report imports dualform.ops.a, which is not below it",
        ),
        (
            "dualform.learners.a",
            "def f():\n    import dualform.lab.b",
            "dualform.learners.a:2: learners imports dualform.lab.b, which is not below it",
        ),
        (
            "dualform.models.a",
            "if TYPE_CHECKING:\n    from dualform import cli",
            "dualform.models.a:2: models imports dualform.cli, which is not below it",
        ),
        (
            "dualform.models.a",
            "importlib.import_module('dualform.runs')",
            "dualform.models.a:1: models imports dualform.runs, which is not below it",
        ),
        (
            "dualform.errors",
            "from dualform.ops import a",
            "dualform.errors:1: errors imports dualform.ops, which is not below it",
        ),
        ("dualform.cli.main", "import dualform", "dualform.cli.main:1: cli imports dualform, which is not below it"),
        (
            "dualform.cli.main",
            "from dualform import compare",
            "dualform.cli.main:1: dualform.compare is not a module of dualform: import from the module that defines it",
        ),
        ("dualform.ops.a", "from . import b", "dualform.ops.a:1: relative import of ."),
        ("dualform.extras.a", "", "dualform.extras.a: extras is on no floor; give it one in FLOORS"),
    ],
)
def test_a_planted_wrong_import_is_found(module, source, sentence):
    assert wrong_imports(module, source) == [sentence]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dualform.cli.main", "from dualform.studies.comparison.run import compare\nimport dualform.runs.store"),
        ("dualform.ops.a", "from dualform.ops.b import c\nfrom dualform.errors import ShapeError\nimport einops"),
        ("dualform.package_index", "from dualform.errors import HubError"),
        ("dualform", "from dualform.cli.main import main"),
        ("dualform.ops.a", "from dualformal import b"),
    ],
)
def test_a_step_down_passes(module, source):
    assert wrong_imports(module, source) == []


def stub_lines() -> list[str]:
    lines = (PACKAGE / "__init__.pyi").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("from ")]


def test_each_public_name_is_listed_once_and_is_that_of_its_module():
    listed = [re.fullmatch(r"from ([\w.]+) import (\w+) as \2", line) for line in stub_lines()]
    homes = {found[2]: found[1] for found in listed if found}
    assert len(homes) == len(listed)
    assert list(dualform.__all__) == dir(dualform) == sorted(homes)
    for name, home in homes.items():
        assert getattr(dualform, name) is getattr(importlib.import_module(home), name)


def test_the_public_surface_stays_small():
    assert len(stub_lines()) <= 50


def test_a_star_import_brings_the_public_names():
    found: dict[str, object] = {}
    exec("from dualform import *", found)
    assert set(dualform.__all__) <= set(found)


def test_a_name_that_moved_is_the_same_object_and_names_its_module():
    assert MOVED.keys().isdisjoint(dualform.__all__)
    for name, home in MOVED.items():
        with pytest.warns(DeprecationWarning, match=f"from {home} import {name}\\."):
            found = getattr(dualform, name)
        assert found is getattr(importlib.import_module(home), name)


def test_the_warning_points_to_the_line_that_imports():
    with pytest.warns(DeprecationWarning, match="kl_divergence") as caught:
        from dualform import kl_divergence  # type: ignore[attr-defined] # noqa: F401
    assert {Path(one.filename) for one in caught} == {Path(__file__)}


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dualform' has no attribute 'compaer'"):
        _ = dualform.compaer  # type: ignore[attr-defined]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_dualform_loads_nothing_heavy_and_prints_nothing():
    code = f"import sys, dualform; print(*sorted({HEAVY!r} & set(sys.modules)))"
    assert run_python(code) == "\n"


def test_the_check_for_heavy_imports_finds_one():
    assert run_python(f"import sys, datasets; print(*sorted({HEAVY!r} & set(sys.modules)))") == "datasets\n"


def test_importing_dualform_sets_up_no_logging():
    code = (
        "import logging, dualform\n"
        "ours = [logger for name, logger in logging.root.manager.loggerDict.items() if name.startswith('dualform')\n"
        "        and isinstance(logger, logging.Logger)]\n"
        "assert logging.root.handlers == [] and logging.root.level == logging.WARNING\n"
        "assert all(logger.handlers == [] and logger.level == logging.NOTSET for logger in ours)\n"
    )
    assert run_python(code) == ""


def test_settings_are_checked_without_torch_or_transformers():
    studies = PACKAGE / "studies"
    configs = [f"dualform.studies.{path.parent.name}.config" for path in sorted(studies.glob("*/config.py"))]
    assert len(configs) > 5
    code = (
        "import importlib, sys\n"
        f"for name in {configs!r}: importlib.import_module(name)\n"
        "from dualform.errors import ConfigError\n"
        "from dualform.studies.comparison.config import comparison_config\n"
        "try: comparison_config('model', 'task', k=-1, max_memory='much')\n"
        "except ConfigError as error: assert 'k: ' in str(error) and 'max_memory' not in str(error)\n"
        "comparison_config('model', 'task', max_memory='cpu=2GiB')\n"
        "print(*sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code) == "\n"


def test_the_help_of_a_command_loads_neither_the_readers_of_tasks_nor_the_schema_of_results():
    spared = {"dualform.result", "dualform.tasks.sources"}
    code = f"import sys, dualform.cli.compare; print(*sorted({spared!r} & set(sys.modules)))"
    assert run_python(code) == "\n"
