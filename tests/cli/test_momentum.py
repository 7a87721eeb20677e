"""`dualform momentum`: training one model and comparing arms from the command line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dualform.errors import ConfigError
from dualform.lab.losses import read_losses
from dualform.lab.pretraining import pretrain
from dualform.models.editing.momentum import momentum_of
from dualform.models.loading.load import load_model
from dualform.studies.momentum import pretrained as momentum_pretrained
from dualform.studies.momentum import regression as momentum_regression
from dualform.studies.momentum import run as study
from dualform.studies.momentum import training as momentum_training
from dualform.studies.momentum.config import read_recipe_fields
from dualform.studies.momentum.run import evaluate_arm
from tests.cli.conftest import Done, result_of
from tests.studies.momentum_setting import RECIPE, STEPS, write_task, write_texts
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}
SETTINGS = [part for name, value in RECIPE.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: path for name, (path,) in write_texts(tmp_path_factory.mktemp("texts")).items()}


@pytest.fixture
def quick(texts: dict[str, str]) -> list[str]:
    """A study of a second: vanilla and momentum, one seed."""
    given = [texts["corpus"], "--validation", texts["validation"], "--test", texts["test"], *SETTINGS]
    return [*given, "--etas", "0.3", "--controls", "none", "--seed", "1", "--resamples", "50", "--device", "cpu"]


@pytest.fixture
def alone(texts: dict[str, str]) -> list[str]:
    """One model."""
    return [texts["corpus"], *SETTINGS, "--device", "cpu"]


def numbers(folder: Path) -> dict[str, Any]:
    """A result without its times."""
    result = result_of(folder)
    for arm in result["momentum"]["arms"]:
        del arm["step_ratio"]
    return {name: value for name, value in result.items() if name != "environment"}


# One model.


def test_a_model_is_trained_and_can_be_loaded(
    dualform: Command, alone: list[str], texts: dict[str, str], tmp_path: Path
) -> None:
    options = ["--eta", "0.3", "--learned", "--normalised", "--validation", texts["validation"]]
    done = dualform("momentum", "train", *alone, *options, "--to", tmp_path / "run")

    assert done.code == 0, done.err
    losses = read_losses(tmp_path / "run" / "losses.jsonl")
    expected = rf"6 steps, 768 tokens: training loss {losses[-1].loss:.3f}, validation loss "
    assert re.fullmatch(expected + rf"{losses[-1].validation:.3f} nats per token\.\n", done.out)
    checkpoint = tmp_path / "run" / f"checkpoint-{STEPS}"
    assert done.message == f"The model: {checkpoint}"
    settings = momentum_of(load_model(str(checkpoint), device="cpu").model)
    assert settings is not None
    assert (settings.eta, settings.learned, settings.normalised) == ((0.3,) * 4, True, True)


def test_without_eta_the_model_is_vanilla_and_loads_anywhere(
    dualform: Command, alone: list[str], tmp_path: Path
) -> None:
    done = dualform("momentum", "train", *alone, "--to", tmp_path / "run")

    assert done.code == 0, done.err
    assert re.fullmatch(r"6 steps, 768 tokens: training loss \d\.\d{3}\.\n", done.out)
    model = load_model(str(tmp_path / "run" / f"checkpoint-{STEPS}"), device="cpu").model
    assert momentum_of(model) is None
    assert model.config.num_hidden_layers == 2


def test_a_stopped_training_resumes(
    dualform: Command, alone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop:
        def start(self, total: float) -> None:
            pass

        def advance(self, amount: float, doing: str) -> None:
            if "step 5/6" in doing:
                raise KeyboardInterrupt

    arguments = ["momentum", "train", *alone, "--eta", "0.3"]
    assert dualform(*arguments, "--to", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(
            momentum_training, "pretrain", lambda *given, **more: pretrain(*given, **(more | {"progress": Stop()}))
        )
        done = dualform(*arguments, "--to", tmp_path / "run")
    assert done.code == 130
    assert done.message == "The last checkpoint is kept; run the same command to resume from it. stopped"
    assert done.out == ""

    assert dualform(*arguments, "--to", tmp_path / "run").code == 0
    weights = [
        (tmp_path / name / f"checkpoint-{STEPS}" / "model.safetensors").read_bytes() for name in ("whole", "run")
    ]
    assert weights[0] == weights[1]
    # Another model does not go on in its folder.
    done = dualform(*arguments, "--normalised", "--to", tmp_path / "run")
    assert done.code == 2
    assert "belongs to another run: its config.dualform_momentum.normalised is False, not True" in done.message


def test_a_cost_is_printed_and_nothing_is_trained(dualform: Command, tmp_path: Path) -> None:
    arguments = ["owner/corpus", "--recipe", "124m", "--cost"]
    done = dualform("momentum", "train", *arguments, "--to", tmp_path / "run")

    assert done.code == 0, done.err
    sizes, operations, hours = done.out.splitlines()
    (parameters,) = re.findall(r"^([\d.]+) million parameters", sizes)
    assert 110 < float(parameters) < 140
    (tokens,) = re.findall(r"([\d,]+) tokens\.$", sizes)
    (flops,) = re.findall(r"^([\d.e+]+) floating-point operations", operations)
    # Six for each weight and token, and some for attention.
    assert 0.8 < float(flops) / (6 * float(parameters) * 1e6 * int(tokens.replace(",", ""))) < 1.5
    (printed,) = re.findall(r"([\d,.]+) hours\.$", hours)
    assert float(printed.replace(",", "")) == pytest.approx(float(flops) / 4e14 / 3600, rel=0.05)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eta", "1"], ["eta 1.0 must be 0 or more and below 1"]),
        (["--learned"], ["a learned eta cannot start from 0"]),
        (["--normalised"], ["normalised momentum needs an eta above 0: give one such as 0.3"]),
        (["--recipe", "huge"], ["recipe 'huge' is unknown", "tiny, small"]),
        (["--validation", "nowhere.txt"], ["file nowhere.txt does not exist"]),
        (["--device", "gpu"], ["device: Input should be 'auto' or 'cpu' (given 'gpu')"]),
        (["--set", "learning_rate"], ["--set 'learning_rate' should look like tokens=2e6"]),
        (["--set", "length=8"], ["--set 'length=8' should look like tokens=2e6, each field once"]),
        (["--set", "lenght=8"], ["--set 'lenght=8': a recipe has no field 'lenght', but model, vocab_size"]),
        (["--set", "clip=-1"], ["clip: Input should be greater than 0 (given -1)"]),
        (["--set", "betas=[0.9"], ["--set betas: not a value in YAML"]),
        (["--set", "warmup=1.2.3e4"], ["warmup: ", "(given '1.2.3e4')"]),
    ],
)
def test_mistakes_in_training_are_named(
    dualform: Command, alone: list[str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    done = dualform("momentum", "train", *alone, *arguments, "--to", tmp_path / "run")

    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert all(word in done.message for word in words), done.message
    # Nothing was read or written before.
    assert not (tmp_path / "run").exists()


def test_text_that_is_not_there_is_named(dualform: Command, tmp_path: Path) -> None:
    done = dualform("momentum", "train", "nowhere.txt", "--to", tmp_path / "run")

    assert done.code == 2
    assert done.message == "error: file nowhere.txt does not exist. Check the name and the current folder."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("tokens=2e6", 2e6),
        ("tokens=2.5E+3", 2500.0),
        ("learning_rate=1e-3", 1e-3),
        ("learning_rate=.5e-2", 5e-3),
        ("clip=null", None),
        ("betas=[0.8, 0.9]", [0.8, 0.9]),
        ("model={model_type: gpt2, n_head: 2}", {"model_type": "gpt2", "n_head": 2}),
        ("precision=bfloat16", "bfloat16"),
        ("model=small", "small"),
        ("length=64", 64),
    ],
)
def test_settings_are_read_as_yaml_and_as_numbers(text: str, value: object) -> None:
    assert read_recipe_fields([text]) == {text.partition("=")[0]: value}
    assert read_recipe_fields(None) == {}
    with pytest.raises(ConfigError, match="each field once"):
        read_recipe_fields([text, text])


# Arms side by side.


@pytest.mark.usefixtures("real_page")
def test_a_study_prints_its_words_and_tables_and_leaves_a_whole_folder(
    dualform: Command, quick: list[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(momentum_regression, "_TESTED", 64)
    monkeypatch.setattr(momentum_pretrained, "LENGTH", 16)
    model = save_tiny("gpt2", tmp_path / "gpt2")
    options = ["--tasks", write_task(tmp_path), "-k", "1", "--limit", "4", "--regress", "--pretrained", str(model)]
    options += ["--regression-steps", "3"]
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    done = dualform("momentum", "compare", *quick, *options, "--out", out)

    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir() if path.is_file()} == PROMISED
    assert f"Report: {out / 'report.html'}" in done.message
    # A long path, which the task's name is here, is folded wherever the line ends.
    printed = done.out.replace("\n", "")
    for words in ("vanilla", "momentum 0.3", "letters", "gpt2"):
        assert words in printed, words
    assert "least squares" in done.out
    result = result_of(out)
    assert result["study"] == "momentum"
    assert [arm["name"] for arm in result["momentum"]["arms"]] == ["vanilla", "momentum 0.3"]
    assert [each["eta"] for each in result["momentum"]["pretrained"]] == [0.1, 0.3]
    assert len(result["momentum"]["regression"]["curves"]) == 2 * 3
    assert "One seed has no interval: train several, with --seeds 1..5." in result["warnings"]
    log = (out / "log.txt").read_text(encoding="utf-8")
    for words in ("momentum 0.3, seed 1: finished", "momentum 0.3, step: finished", "regression, vanilla, seed 1: fin"):
        assert words in log
    assert "momentum" in (out / "report.html").read_text(encoding="utf-8")
    rows = pq.read_table(out / "examples.parquet").to_pylist()
    assert len(rows) == 2 * (3 + 4)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_a_stopped_study_resumes(
    dualform: Command, quick: list[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def counted(config: Any, trained: Any, arm: Any, *rest: Any) -> Any:
        if len(started) == stop_before:
            raise KeyboardInterrupt
        started.append(arm.name)
        return evaluate_arm(config, trained, arm, *rest)

    monkeypatch.setattr(study, "evaluate_arm", counted)
    stop_before = 1
    done = dualform("momentum", "compare", *quick, "--out", out)
    assert done.code == 130
    assert done.message == "Finished runs are kept; run the same command to resume. stopped"
    assert not (out / "result.json").exists()

    stop_before = -1
    assert dualform("momentum", "compare", *quick, "--out", out).code == 0
    assert started == ["vanilla", "momentum 0.3"]
    whole = out.with_name("whole")
    assert dualform("momentum", "compare", *quick, "--out", whole).code == 0
    assert numbers(out) == numbers(whole)
    assert pq.read_table(out / "examples.parquet").equals(pq.read_table(whole / "examples.parquet"))


def test_options_reach_the_settings_and_json_is_printed(
    dualform: Command, texts: dict[str, str], out: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"model": "tiny", "learning_rate": 1e-3, **RECIPE}))
    given = [texts["corpus"], "--validation", texts["validation"], "--test", texts["test"]]
    options = ["--recipe", tmp_path / "own.yaml", "--set", "tokens=256", "--etas", "0.2,0.5", "--seeds", "3,5"]
    options += ["--controls", "normalised,linear", "--control-eta", "0.4", "--test-tokens", "64", "--resamples", "20"]
    options += ["--device", "cpu", "--limit", "0", "--data-dir", str(tmp_path)]
    done = dualform("momentum", "compare", *given, *options, "--json", "--out", out)

    assert done.code == 0, done.err
    assert done.out == (out / "result.json").read_text(encoding="utf-8")
    config = result_of(out)["config"]
    expected = {
        "recipe": str(tmp_path / "own.yaml"),
        "settings": {"tokens": 256.0},
        "etas": [0.2, 0.5],
        "controls": ["normalised", "linear"],
        "control_eta": 0.4,
        "seeds": [3, 5],
        "test_tokens": 64,
        "limit": None,
        "resamples": 20,
        "device": "cpu",
        "data_dir": str(tmp_path),
        "regress": False,
    }
    assert {name: config[name] for name in expected} == expected
    arms = {arm["name"]: arm["baseline"] for arm in result_of(out)["momentum"]["arms"]}
    assert arms == {
        "vanilla": None,
        "momentum 0.2": "vanilla",
        "momentum 0.5": "vanilla",
        "normalised 0.4": "vanilla",
        "linear": None,
    }
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))["etas"] == [0.2, 0.5]


def test_the_folder_is_named_after_the_recipe_and_other_settings_may_follow_in_it(
    dualform: Command, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "momentum-tiny"
    assert dualform("momentum", "compare", *quick).code == 0
    first = numbers(folder)
    done = dualform("momentum", "compare", *quick, "--set", "learning_rate=2e-3", "--out", folder)
    assert done.code == 2
    assert f"{folder} holds the result of other settings" in done.message

    # Checkpoints of the first study are in the way of nothing.
    done = dualform("momentum", "compare", *quick, "--set", "learning_rate=2e-3", "--out", folder, "--overwrite")
    assert done.code == 0, done.err
    assert numbers(folder)["momentum"] != first["momentum"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--etas", "0"], ["etas [0.0] must lie between 0 and 1; eta 0 is vanilla"]),
        (["--etas", "0.1,0.1"], ["etas [0.1, 0.1] must be different"]),
        (["--etas", "much"], ["etas 'much' should be numbers with commas between"]),
        (["--controls", "magic"], ["--controls, value 1: ", "'magic'", "'convolution'"]),
        (["--control-eta", "1"], ["control_eta 1.0 must lie between 0 and 1"]),
        (["--recipe", "huge"], ["recipe 'huge' is unknown"]),
        (["--seeds", "1..3"], ["--seed 1 and --seeds 1..3 were both given"]),
        (["--set", "seed=3"], ["settings may not contain seed, which each run takes from seeds"]),
        (["--set", "lenght=3"], ["a recipe has no field 'lenght'"]),
        (["--set", "vocab_size=3"], ["each field once"]),
        (["--test", "nowhere.txt"], ["file nowhere.txt does not exist"]),
        (["--tasks", "nowhere.csv"], ["nowhere.csv"]),
        (["--pretrained", "no/such/model"], ["no model folder at no/such/model"]),
        (["--device", "gpu"], ["device: ", "(given 'gpu')"]),
        (["--resamples", "1"], ["resamples: ", "(given 1)"]),
    ],
)
def test_mistakes_in_a_comparison_are_named(
    dualform: Command, quick: list[str], out: Path, arguments: list[str], words: list[str]
) -> None:
    done = dualform("momentum", "compare", *quick, *arguments, "--out", out)

    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert all(word in done.message for word in words), done.message
    assert not (out / "result.json").exists()
    assert not list(out.glob("training-*"))


@pytest.mark.parametrize("missing", ["--validation", "--test", "corpus"])
def test_missing_texts_are_an_error(dualform: Command, texts: dict[str, str], missing: str) -> None:
    given = {"corpus": [texts["corpus"]], "--validation": ["--validation", "a.txt"], "--test": ["--test", "b.txt"]}
    done = dualform(
        "momentum", "compare", *(part for name, parts in given.items() if name != missing for part in parts)
    )

    assert done.code == 2
    assert missing in done.err.lower()


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("train", ("--to", "--eta", "--learned", "--cost", "--set", "dualform momentum train prose.txt --to runs/")),
        ("compare", ("--etas", "--controls", "--seeds", "--regress", "dualform momentum compare train.txt --valid")),
    ],
)
def test_help_has_worked_examples(dualform: Command, command: str, names: tuple[str, ...]) -> None:
    done = dualform("momentum", command, "--help", COLUMNS="200")

    assert done.code == 0
    assert all(name in done.out for name in names)
