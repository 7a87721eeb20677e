"""`dualform fold`: writes a checkpoint or an adapter, atomically."""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualform.models.export import checkpoint
from dualform.result import Result
from dualform.runs.store import read_result
from dualform.studies.fold import run as study
from dualform.studies.fold.words import headlines
from tests.cli.conftest import Done
from tests.studies.small import sentences

# peft says of each linear without a bias that an adapter with one cannot be merged, which the card says too.
pytestmark = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
Command = Callable[..., Done]
PATIENCE = 120
"""Seconds to wait for another process, most of which go into importing torch on a busy machine."""
PROSE = "a cold and plain morning, and with wit and grace it went\none of the worst films of the year\n"


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a fold that takes a second."""
    prose = tmp_path_factory.mktemp("texts") / "prose.txt"
    prose.write_text(PROSE, encoding="utf-8")
    small = ["--text", "body", "--label", "topic", "-k", "4", "--limit", "8", "--resamples", "50"]
    return [*small, "--fold-texts", "12", "--plain", str(prose)]


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """Folder of the checkpoint."""
    return tmp_path / "out" / "folded"


def loaded(folder: Path) -> torch.Tensor:
    """Logits of a checkpoint after a prompt, with transformers only."""
    ids = AutoTokenizer.from_pretrained(folder)("Review: a warm and funny film", return_tensors="pt").input_ids
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits
    assert logits.isfinite().all()
    return logits


def lies_at(to: Path) -> list[str]:
    """All files in the folder's parent, including hidden ones."""
    return sorted(path.name for path in to.parent.iterdir()) if to.parent.exists() else []


def assert_refused(done: Done, to: Path, *words: str) -> None:
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.message, f"{word!r} is not in {done.message!r}"
    assert lies_at(to) == []


def test_a_fold_prints_its_accuracy_and_writes_a_checkpoint(
    dualform: Command, quick: list[str], to: Path, workplace: Path
) -> None:
    done = dualform("fold", "llama", "tickets.csv", *quick, "--to", to)

    assert done.code == 0, done.err
    assert done.message.startswith(f"The checkpoint: {to} Its numbers: {to}/result.json; dualform report {to} writes ")
    assert f"For the hub: dualform push {to} OWNER/NAME " in done.message
    assert lies_at(to) == ["folded"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {path.name for path in to.iterdir()}
    words = " ".join(done.out.split())
    assert "Folded 4 demonstrations into llama (ridge): zero-shot, it agrees with the prompted model on " in words
    for text in ("of 8 queries (by chance ", "Accuracy", "in-context"):
        assert text in words, text
    # The page says what the terminal said, first of all.
    assert dualform("report", to).code == 0
    page = " ".join(html.unescape((to / "report.html").read_text(encoding="utf-8")).split())
    for sentence in headlines(read_result(to)):
        assert sentence in words
        assert sentence in page
    assert not torch.allclose(loaded(to), loaded(workplace / "llama"), atol=1e-3)


def test_json_is_the_result_alone(dualform: Command, quick: list[str], to: Path) -> None:
    done = dualform("fold", "gpt2", "tickets.csv", *quick, "--seed", "3", "--json", "--to", to)

    assert done.code == 0, done.err
    result = Result.from_json(done.out)
    assert list(result.accuracy) == ["zsl", "icl", "fold"]
    assert result.fold is not None
    assert (result.fold.texts, result.fold.plain_source) == (12, "prose.txt")
    assert result.demonstrations is not None
    assert list(result.demonstrations.rows) == ["3"]
    loaded(to)


def test_options_reach_the_settings(dualform: Command, quick: list[str], to: Path, tmp_path: Path) -> None:
    lines = tmp_path / "more.txt"
    lines.write_text("".join(f"{text}\n" for text, _ in sentences()[:10]), encoding="utf-8")
    options = ["--calibration", str(lines), "--strength", "0.5", "--answer-weight", "3", "--fold-layers", "0..1"]
    options += [
        "--plain-weight",
        "7",
        "--shuffled",
        "--context",
        "300",
        "--dtype",
        "float64",
        "--device",
        "cpu",
        "--route",
        "packed",
    ]
    done = dualform("fold", "llama", "tickets.csv", *quick, *options, "--json", "--to", to)

    assert done.code == 0, done.err
    result = json.loads(done.out)
    config = result["config"]
    assert (config["text"], config["label"], config["k"], config["limit"]) == ("body", "topic", 4, 8)
    assert config["fold"]["calibration"] == str(lines)
    assert (config["fold"]["strength"], config["fold"]["answer_weight"], config["fold"]["layers"]) == (0.5, 3, [0, 1])
    assert config["fold"]["plain_weight"] == 7
    assert (config["balanced"], config["context"], config["dtype"]) == (False, 300, "float64")
    assert (result["fold"]["source"], result["fold"]["texts"], result["fold"]["strength"]) == ("more.txt", 10, 0.5)


def test_an_option_that_the_method_does_not_look_at_is_refused(dualform: Command, quick: list[str], to: Path) -> None:
    done = dualform("fold", "llama", "tickets.csv", *quick, "--method", "thought-vector", "--strength", "1", "--to", to)
    assert_refused(done, to, "method thought-vector does not use --plain, --strength: leave that out")


def test_an_adapter_is_written_for_the_base_model(
    dualform: Command, quick: list[str], to: Path, workplace: Path
) -> None:
    done = dualform("fold", "llama", "tickets.csv", *quick, "--as", "lora", "--rank", "2", "--to", to)

    assert done.code == 0, done.err
    assert done.message.startswith(f"The adapter: {to} Its numbers: {to}/result.json; ")
    assert "The adapter of rank 2 keeps " in " ".join(done.out.split())
    adapter = {"adapter_config.json", "adapter_model.safetensors", "README.md", "result.json"}
    assert {path.name for path in to.iterdir()} == adapter
    settings = json.loads((to / "adapter_config.json").read_text(encoding="utf-8"))
    assert (settings["r"], settings["base_model_name_or_path"]) == (2, "llama")
    base = AutoModelForCausalLM.from_pretrained(workplace / "llama").eval()
    ids = torch.tensor([[0, 20, 30, 40]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, to).eval()(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_perplexity_and_a_check_in_a_fresh_process_are_reported(dualform: Command, quick: list[str], to: Path) -> None:
    prose = quick[-1]
    done = dualform("fold", "llama", "tickets.csv", *quick, "--perplexity", prose, "--verify", "--to", to)

    assert done.code == 0, done.err
    words = " ".join(done.out.split())
    assert f"Perplexity on {prose}: " in words
    assert "Loaded in a fresh process, its log-probabilities differ by at most " in words


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["more.txt contains no text", "Write one text on each line"]),
        (None, ["more.txt does not exist", "Check the path"]),
        ("a film\n" * 5, ["more.txt holds 5 texts", "too few to fold from: give at least 8"]),
        (
            "a film\n" * 9 + "long " * 400 + "\n",
            ["text 10 of", "more.txt does not fit behind the demonstrations", "(-k)"],
        ),
    ],
    ids=["empty", "missing", "few", "long"],
)
def test_a_file_of_texts_that_cannot_be_used(
    dualform: Command, quick: list[str], to: Path, tmp_path: Path, content: str | None, words: list[str]
) -> None:
    path = tmp_path / "more.txt"
    if content is not None:
        path.write_text(content, encoding="utf-8")

    assert_refused(dualform("fold", "llama", "tickets.csv", *quick, "--calibration", path, "--to", to), to, *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "rank-one"], ["method rank-one changes no weights", "choose one of ridge, thought-vector"]),
        (["--method", "magic"], ["--method: ", "'magic'", "'ridge'"]),
        (["--strength", "x"], ["strength 'x' should be a number such as 0.01, or gcv"]),
        (["--strength", "-1"], ["strength -1.0 must be 0 or more"]),
        (["--strength", "inf"], ["strength inf must be 0 or more and finite"]),
        (["--answer-weight", "0.1"], ["--answer-weight: ", "(given 0.1)"]),
        (["--fold-layers", "0..99"], ["layers [2, 3, 4", "do not exist: llama has layers 0 to 1"]),
        (["--fold-layers", "all"], ["layers 'all' should look like 3, 0..11 or 1,4,9"]),
        (["--fold-texts", "2"], ["--fold-texts: ", "greater than or equal to 8", "(given 2)"]),
        (["--as", "gguf"], ["--as: ", "'checkpoint' or 'lora'", "'gguf'"]),
        (["--as", "lora", "--rank", "0"], ["rank: ", "(given 0)"]),
        (["--plain", "nowhere.txt"], ["nowhere.txt does not exist"]),
        (["--perplexity", "nowhere.txt"], ["nowhere.txt does not exist"]),
        (["-k", "40"], ["40 demonstrations were requested", "Request at most"]),
        (["-k", "0"], ["k 0 leaves nothing to fold: give at least one"]),
    ],
)
def test_a_setting_that_cannot_be_used(
    dualform: Command, quick: list[str], to: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(dualform("fold", "llama", "tickets.csv", *quick, *arguments, "--to", to), to, *words)


def test_where_to_is_not_left_to_chance(dualform: Command, quick: list[str]) -> None:
    done = dualform("fold", "llama", "tickets.csv", *quick)

    assert done.code == 2
    assert "--to" in done.err


def test_an_existing_checkpoint_is_replaced_only_on_request(
    dualform: Command, quick: list[str], to: Path, workplace: Path
) -> None:
    shutil.copytree(workplace / "llama", to)
    old = (to / "model.safetensors").read_bytes()
    arguments = ["fold", "llama", "tickets.csv", *quick, "--to", to]
    done = dualform(*arguments)

    assert done.code == 2
    assert "folded already exists. Choose another folder, or allow it to be overwritten" in done.message
    assert (to / "model.safetensors").read_bytes() == old

    done = dualform(*arguments, "--overwrite")
    assert done.code == 0, done.err
    assert (to / "model.safetensors").read_bytes() != old
    assert (to / "README.md").exists()
    assert lies_at(to) == ["folded"]


@pytest.mark.parametrize("where", ["llama", "."])
def test_base_and_current_folder_are_never_replaced(dualform: Command, quick: list[str], where: str) -> None:
    done = dualform("fold", "llama", "tickets.csv", *quick, "--overwrite", "--to", where)

    assert done.code == 2
    assert "Choose another folder" in done.message
    assert Path("llama", "config.json").exists()


def test_a_folder_of_something_else_is_not_overwritten(dualform: Command, quick: list[str], to: Path) -> None:
    to.mkdir(parents=True)
    (to / "thesis.tex").write_text("years of work", encoding="utf-8")
    done = dualform("fold", "llama", "tickets.csv", *quick, "--overwrite", "--to", to)

    assert done.code == 2
    assert "will not be overwritten" in done.message
    assert (to / "thesis.tex").read_text(encoding="utf-8") == "years of work"


@pytest.mark.parametrize("where", ["reading", "writing"])
def test_ctrl_c_leaves_nothing(
    dualform: Command, quick: list[str], to: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    at = {"reading": (study, "answer_log_probabilities"), "writing": (checkpoint, "_exchange")}[where]
    monkeypatch.setattr(*at, stop)
    done = dualform("fold", "llama", "tickets.csv", *quick, "--to", to)

    assert (done.code, done.out, done.message) == (130, "", "stopped")
    assert lies_at(to) == []


def test_kill_9_during_writing_leaves_no_checkpoint_and_the_next_attempt_succeeds(
    dualform: Command, quick: list[str], to: Path, workplace: Path, tmp_path: Path
) -> None:
    arguments = ["fold", "llama", "tickets.csv", *quick, "--to", str(to)]
    here = tmp_path / "written"
    # Everything is written then, and stands under another name.
    script = (
        "import time, pathlib; import dualform.models.export.checkpoint as c;"
        f"c._exchange = lambda *a: (pathlib.Path({str(here)!r}).touch(), time.sleep({PATIENCE}));"
        "from dualform.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        end = time.monotonic() + PATIENCE
        while not here.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        printed, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert printed == ""
    assert "Traceback" not in errors
    assert not to.exists()

    (left,) = lies_at(to)
    assert left.startswith(".folded-")
    done = dualform(*arguments)
    assert done.code == 0, done.err
    loaded(to)
    # What the killed process left is gone.
    assert lies_at(to) == ["folded"]


def test_help_has_worked_examples(dualform: Command) -> None:
    done = dualform("fold", "--help")

    assert done.code == 0
    assert "dualform fold smollm2-135m reviews --to folded --verify" in done.out
    for name in ("--to", "--as", "--rank", "--verify", "--calibration", "--strength", "--fold-layers"):
        assert name in done.out
