import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualform.errors import ConfigError
from dualform.runs.sweep_config import SweepConfig, expand, groups_of, listed_configs, read_sweep_file
from dualform.runs.sweep_run import sweep_settings
from dualform.studies.comparison.config import ComparisonConfig, comparison_config, read_config
from dualform.studies.folding.config import FoldingConfig
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.stability.config import StabilityConfig
from tests.packages import register

GRID: dict[str, Any] = {"models": ["a", "b"], "tasks": ["sst2", "mr"], "seeds": "1..3"}


def groups(**changes: Any) -> list[Any]:
    return expand(SweepConfig(**(GRID | changes)))


def test_a_grid_is_every_combination_of_its_axes_once() -> None:
    expanded = groups(grid={"k": [4, 16], "label_rule": ["true", "random"]})

    assert len(expanded) == 2 * 2 * 2 * 2
    configs = [group.config for group in expanded]
    expected = itertools.product("ab", ("sst2", "mr"), (4, 16), ("true", "random"))
    assert {(each.model, each.task, each.k, each.label_rule) for each in configs} == set(expected)
    assert all(each.seeds == (1, 2, 3) for each in configs)
    assert len({group.name for group in expanded}) == 16
    assert expanded[0].name == "a-sst2-k-4-label_rule-true"
    assert expanded[0].options == {"k": 4, "label_rule": "true"}


def test_what_is_excluded_is_not_run_and_nothing_else_is_lost() -> None:
    expanded = groups(exclude=[{"model": "a", "task": "mr"}])

    assert [group.name for group in expanded] == ["a-sst2", "b-sst2", "b-mr"]
    assert [group.name for group in groups(exclude=[{"model": ["a", "b"], "task": "mr"}])] == ["a-sst2", "b-sst2"]


def test_a_task_and_a_model_bring_settings_of_their_own() -> None:
    task = {"task": "mine.csv", "text": "body", "label": "topic"}
    expanded = groups(models=[{"model": "org/a", "dtype": "bfloat16"}, "b"], tasks=[task, "mr"])

    first = expanded[0].config
    assert (first.text, first.label, first.dtype) == ("body", "topic", "bfloat16")
    assert (expanded[1].config.text, expanded[2].config.dtype) == (None, "float32")
    assert [group.name for group in expanded] == ["a-mine", "a-mr", "b-mine", "b-mr"]
    assert (expanded[0].model, expanded[0].task) == ("a", "mine")


def test_an_axis_reaches_into_a_group_of_settings() -> None:
    expanded = groups(settings={"fold": {"texts": 64}}, grid={"fold.strength": [0.01, "gcv"]})

    assert [group.config.fold.strength for group in expanded[:2]] == [0.01, "gcv"]
    assert {group.config.fold.texts for group in expanded} == {64}


@pytest.mark.parametrize(("given", "seeds"), [("1..3", (1, 2, 3)), ("1,4", (1, 4)), (5, (5,)), ([2, 3], (2, 3))])
def test_seeds_are_read_as_on_the_command_line(given: Any, seeds: tuple[int, ...]) -> None:
    assert SweepConfig(seeds=given).seeds == seeds


def test_a_label_rule_that_yaml_takes_for_a_truth_value_is_read_as_the_word(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("models: [a]\ntasks: [mr]\ngrid: {label_rule: [true, random]}\n")
    _, expanded = read_sweep_file(tmp_path / "grid.yaml")

    assert [group.config.label_rule for group in expanded if isinstance(group.config, ComparisonConfig)] == [
        "true",
        "random",
    ]


def test_other_studies_are_swept_too() -> None:
    expanded = groups(study="stability", models=["a"])
    assert isinstance(expanded[0].config, StabilityConfig)
    assert expanded[0].config.models == ("a",)
    assert expanded[0].name == "a-sst2-stability"

    (laboratory,) = groups(study="regress", models=(), tasks=(), settings={"studies": ("constructed",)})
    assert isinstance(laboratory.config, RegressionConfig)
    assert (laboratory.model, laboratory.task, laboratory.name) == (None, None, "regress")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models is empty"),
        ({"grid": {"k": []}}, "k is empty"),
        ({"grid": {"k": [4]}, "settings": {"k": 8}}, "k is in both settings and grid"),
        ({"grid": {"seeds": [1]}}, "seeds cannot be in grid"),
        ({"settings": {"kk": 4}}, r"model a, task sst2: kk: Extra inputs are not permitted"),
        ({"grid": {"k": [4, -1]}}, r"model a, task sst2, k -1: k: Input should be greater than or equal to 0"),
        ({"exclude": [{"modle": "a"}]}, "modle is not an axis; the axes are model, task"),
        ({"exclude": [{"model": ["a", "b"]}]}, "exclude removes all combinations"),
        ({"grid": {"k": [4, 4]}}, "remove the repeated value"),
        ({"grid": {"k": list(range(30000))}}, "360000 cells, more than the limit of 10000.*--max-cells 360000"),
        ({"models": [{"dtype": "float64"}]}, "must be a name, or a mapping with `model: NAME`"),
        ({"settings": {"preset": "dai2024"}}, "unknown preset 'dai2024': choose one of default, dai2023"),
        ({"study": "regress"}, "study regress has no setting for models"),
        ({"settings": {"seeds": [1]}}, "seeds cannot be in settings"),
        ({"tasks": [{"task": "mr", "k": 2}], "grid": {"k": [4, 8]}}, "k is set both for mr and in grid"),
    ],
)
def test_a_mistake_is_named_with_its_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        groups(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a", "cannot be read as a sweep"),
        ("- a", "should hold settings"),
        ("models: [a]\ntasks: [mr]\nseeds: 3..1\n", r"seeds '3\.\.1': 3\.\.1 runs backwards"),
        ("models: [a]\ntasks: [mr]\nseeds: 1..99999999\n", r"1\.\.99999999 are more than 10000 seeds"),
        ("models: [a]\ntasks: [mr]\nseeds: true\n", "seeds: should be a number, a range such as"),
        (
            f"models: [a]\ntasks: [mr]\ngrid: {{k: {list(range(300))}, context: {list(range(8, 308))}}}\n",
            "270000 cells",
        ),
        ("configs: [{study: compare, model: a, task: mr, seeds: 0..10000}]\n", "more than 10000 seeds"),
        (
            "models: [a]\ntasks: [mr]\nstudy: tuning\n",
            "study: 'tuning' is not a study: choose one of compare, stability",
        ),
        ("modles: [a]\n", "modles: Extra inputs"),
        ("configs: 3\n", "configs should be a list"),
        ("configs: []\nmodels: [a]\n", "models cannot be combined with configs"),
        ("configs: [{study: x}]\n", r"configs\[0\] needs a study: one of compare, stability"),
    ],
)
def test_a_file_that_cannot_be_used_is_reported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep_file(tmp_path / "grid.yaml")


def test_a_missing_file_and_another_folder_are_reported(tmp_path: Path) -> None:
    for name in ("none.yaml", "none.py"):
        with pytest.raises(ConfigError, match="none"):
            read_sweep_file(tmp_path / name)
    with pytest.raises(ConfigError, match="is a folder without sweep"):
        read_sweep_file(tmp_path)


def test_a_sweep_written_in_python_is_a_list_of_configurations(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dualform import comparison_config\n"
        "configs = [comparison_config('a', 'mr', k=k, seeds=(1, 2)) for k in (4, 8)]\n"
    )
    config, expanded = read_sweep_file(tmp_path / "mine.py")

    assert config.name == "mine"
    assert [group.config.k for group in expanded if isinstance(group.config, ComparisonConfig)] == [4, 8]
    # Names of folders must differ though models and tasks do not.
    assert len({group.name for group in expanded}) == 2

    # What the sweep's folder keeps of it gives the same runs.
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "sweep.yaml").write_text(yaml.safe_dump(listed_configs("mine", expanded)))
    again, same = read_sweep_file(tmp_path / "kept")
    assert again.name == "mine"
    assert [group.config for group in same] == [group.config for group in expanded]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("configs = 3", "must assign a list of study configurations"),
        ("configs = []", "configs is empty"),
        ("configs = [3]", r"configs\[0\] is a int, not the configuration of a study"),
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "raised SystemExit: 3"),
    ],
)
def test_a_python_file_without_configurations_is_reported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep_file(tmp_path / "mine.py")


def test_a_python_file_can_import_modules_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "beside_the_sweep.py").write_text("KS = (4, 8)\n")
    (tmp_path / "mine.py").write_text(
        "from beside_the_sweep import KS\nfrom dualform import comparison_config\n"
        "configs = [comparison_config('a', 'mr', k=k) for k in KS]\n"
    )
    assert len(read_sweep_file(tmp_path / "mine.py")[1]) == 2


def test_names_that_no_file_system_takes_are_cut_to_bytes() -> None:
    (expanded,) = groups(models=["m" + "\u5b57" * 90], tasks=["mr"])
    assert len(expanded.name.encode()) <= 120


def test_the_same_configuration_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"configs\[1\] is equal to an earlier one"):
        groups_of([comparison_config("a", "mr")] * 2)
    with pytest.raises(ConfigError, match=r"configs\[0\] is a SweepConfig"):
        groups_of([SweepConfig()])


def test_folders_that_only_capitals_tell_apart_get_other_names() -> None:
    names = [group.name for group in groups(models=["org/Model", "other/model"], tasks=["mr"])]

    assert len({name.lower() for name in names}) == 2


def test_a_bare_number_is_one_seed_in_every_studys_settings() -> None:
    for study in ("compare", "stability", "selection", "folding"):
        assert [each.config.seeds for each in groups(study=study, models=["a"], tasks=["mr"], seeds=20)] == [(20,)]
    for config in (
        comparison_config("a", "mr", seeds=20),
        StabilityConfig(models=("a",), task="mr", seeds=20),  # type: ignore[arg-type]
        RegressionConfig(seeds="20"),  # type: ignore[arg-type]
    ):
        assert config.seeds == (20,)
    assert comparison_config("a", "mr", seeds="1..3").seeds == (1, 2, 3)


def test_the_limit_of_cells_counts_all_seeds_and_can_be_raised(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("models: [a]\ntasks: [mr]\nseeds: 1..10\ngrid: {k: [1, 2, 4]}\n")
    (tmp_path / "mine.py").write_text(
        "from dualform import comparison_config\n"
        "configs = [comparison_config('a', 'mr', k=k, seeds='1..10') for k in (1, 2, 4)]\n"
    )
    for name in ("grid.yaml", "mine.py"):
        assert len(read_sweep_file(tmp_path / name, max_cells=30)[1]) == 3
        with pytest.raises(ConfigError, match="30 cells, more than the limit of 29"):
            read_sweep_file(tmp_path / name, max_cells=29)


@pytest.mark.parametrize(
    "text",
    [
        "models: [a]\ntasks: [mr]\nsettings: {trust_remote_code: true}\n",
        "models: [{model: a, trust_remote_code: 'yes'}]\ntasks: [mr]\n",
        "models: [a]\ntasks: [{task: mr, trust_remote_code: 1}]\n",
        "models: [a]\ntasks: [mr]\ngrid: {trust_remote_code: [false, true]}\n",
        "configs: [{study: selection, model: a, task: mr, trust_remote_code: true}]\n",
    ],
)
def test_a_file_cannot_allow_a_checkpoints_code_to_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"trust_remote_code cannot be allowed by a file.*--trust-remote-code"):
        read_sweep_file(tmp_path / "grid.yaml")


def test_the_command_line_can_and_the_sweeps_folder_does_not_keep_it(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("models: [a]\ntasks: [mr]\n")
    config, expanded = read_sweep_file(tmp_path / "grid.yaml", trust_remote_code=True)
    assert [getattr(group.config, "trust_remote_code", None) for group in expanded] == [True]
    assert "trust" not in yaml.safe_dump(sweep_settings(config, expanded))

    # What Python allows is its own; a folder that is handed on allows nothing.
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(listed_configs("mine", groups_of([comparison_config("a", "mr", trust_remote_code=True)])))
    )
    for trusted in (False, True):
        _, expanded = read_sweep_file(tmp_path, trust_remote_code=trusted)
        assert [getattr(group.config, "trust_remote_code", None) for group in expanded] == [trusted]


def test_a_runs_settings_do_not_bring_the_permission_along(tmp_path: Path) -> None:
    config = comparison_config("a", "mr", trust_remote_code=True)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with pytest.raises(ConfigError, match="sets trust_remote_code, which runs whatever code comes with"):
        read_config(path)
    assert read_config(path, trust_remote_code=True) == config


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("configs: [{study: [compare]}]", r"configs\[0\] needs a study"),
        ("models: yes\ntasks: sst2", "models: should be a name or a list of names"),
        ("models: a\ntasks: [no]", "tasks: False is not a name; .* put a name in quotes"),
        ("models: a\ntasks: sst2\nname: yes", "name: .* string .given True.; .* put a name in quotes"),
        ("models: a\ntasks: sst2\nname: 2024-01-01", "name: .*; .* put a name in quotes"),
        ("models: a\ntasks: sst2\nseeds: 1.5", "seeds: should be a number, a range such as 1..7, or a list"),
        ("models: a\ntasks: sst2\nseeds: 2024-01-01", "seeds: should be a number"),
        ("models: a\ntasks: sst2\nseeds: 1:30", "line 3 holds 1:30, which YAML reads as a number in base 60"),
        ("models: a\ntasks: sst2\nseeds: 010", "line 3 holds 010, which YAML reads as a number in base 8"),
        ("models: a\ntasks: sst2\nsettings: {k: yes}", r"k: should be a number \(given True\)"),
        ("models: a\ntasks: sst2\nsettings: {rates: [on]}", r"rates: should be a number \(given \[True\]\)"),
        ("models: a\ntasks: sst2\nsettings: {fold: {strength: no}}", r"fold\.strength: should be a number"),
    ],
)
def test_what_yaml_reads_as_something_else_is_refused(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(lines)
    with pytest.raises(ConfigError, match=message):
        read_sweep_file(path)


def test_settings_that_are_truth_values_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("models: a\ntasks: sst2\nstudy: folding\nsettings: {ft: no, k: 3}\n")
    _, expanded = read_sweep_file(path)
    config = expanded[0].config
    assert isinstance(config, FoldingConfig)
    assert (config.ft, config.k) == (False, 3)


SEEDLESS = """
from pydantic import BaseModel
from dualform.studies.study import Study, View
class Config(BaseModel):
    size: int = 1
STUDY = Study("seedless", "study", lambda: Config, Config, lambda config, context: None, View(lambda result: []))
"""


def test_a_study_without_model_task_and_seeds_is_swept_over_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tmp_path, "seedless", "1.0", {"dualform.studies": {"seedless": "seedless_study:STUDY"}})
    (tmp_path / "seedless_study.py").write_text(SEEDLESS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    groups = expand(SweepConfig(study="seedless", grid={"size": [1, 2]}))

    assert [(group.name, group.model, group.task) for group in groups] == [
        ("seedless-size-1", None, None),
        ("seedless-size-2", None, None),
    ]
    with pytest.raises(ConfigError, match="study seedless has no setting for models"):
        expand(SweepConfig(study="seedless", models=("gpt2",)))
