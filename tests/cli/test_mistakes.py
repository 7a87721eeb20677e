"""Every mistake a user can make ends in exit code 2 and one message that names the value and what to do."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tokenizers
import transformers

from dualform.runs.store import RunFolder
from tests.cli.conftest import QUICK, Done
from tests.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]


def assert_refused(done: Done, *words: str) -> None:
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.message, f"{word!r} is not in {done.message!r}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "nonsense"], ["unknown preset 'nonsense'", "choose one of default, dai2023"]),
        (["--seeds", "x"], ["seeds 'x'", "should look like 3, 1..7 or 1,4,9"]),
        (["--seeds", "3..1"], ["seeds '3..1'", "runs backwards", "write 1..3"]),
        (["--seeds", "1,1"], ["seeds [1, 1]", "one or more different numbers"]),
        (["--seeds", "1,,2"], ["seeds '1,,2'", "should look like"]),
        (["--rates", "fast"], ["rates 'fast'", "such as 1e-4,1e-3"]),
        (["--rates", "-1"], ["rates [-1.0]", "between 0 and 1e+37"]),
        (["--rates", "1e38"], ["rates [1e+38]", "between 0 and 1e+37"]),
        (["--seeds", "4294967296"], ["seeds [4294967296]", "from 0 to 4294967295"]),
        (["--seeds", "1..10001"], ["seeds '1..10001'", "more than 10000 seeds"]),
        (["--lora-rates", "1e-3,"], ["lora_rates '1e-3,'", "such as"]),
        (["-k", "-1"], ["k: ", "greater than or equal to 0", "(given -1)"]),
        (["--limit", "-3"], ["limit: ", "(given -3)"]),
        (["--learners", "zsl,mezo"], ["unknown learner 'mezo'", "choose among zsl, icl, ft, lora, "]),
        (["--learners", ""], ["learners []", "at least one"]),
        (["-k", "0", "--learners", "zsl,probe"], ["k 0 leaves probe nothing", "--learners zsl,icl,ft"]),
        (["--dtype", "int8"], ["'int8'", "'float32'"]),
        (["--device", "gpu"], ["device 'gpu' cannot be used", "try --device cpu"]),
        (["--route", "fastest"], ["'fastest'", "'packed'"]),
        (["--probe", "end"], ["'end'", "'prompt' or 'label0'"]),
        (["--tune", "never"], ["'never'", "'first' or 'each'"]),
        (["--select-on", "train"], ["'train'", "'validation' or 'report'"]),
        (["--chat", "on"], ["of gpt2 has no chat template", "--chat off"]),
        (["--chat", "maybe"], ["'maybe'", "'off', 'auto' or 'on'"]),
        (["--system", "Be brief."], ["chat is off", "leave system out"]),
        (["--loss-on", "prompt"], ["'prompt'", "'all' or 'label'"]),
        (["--label-rule", "wrong"], ["'wrong'", "'true', 'shuffled', 'random' or 'flipped'"]),
        (["--preset", "dai2023", "--learners", "zsl,ft"], ["select icl", "must include icl"]),
        (["--select", "ft", "--learners", "zsl,icl"], ["select ft chooses by accuracy", "must include ft"]),
        (["--select", "best"], ["'best'", "'none', 'icl', 'ft' or 'both'"]),
        (["--controls", "bogus"], ["unknown control 'bogus'", "choose among random, random_update"]),
        (["--controls", "random,bogus,mlp"], ["'bogus'"]),
        (["--controls", "all,random"], ["'all'"]),
        (["--controls", "random,random"], ["controls ['random', 'random']", "must be different"]),
        (["--control-limit", "-1"], ["--control-limit: ", "(given -1)"]),
        (["--seed", "1"], ["--seed 1 and --seeds 1 were both given"]),
        (["--k", "-2", "--dtype", "int8"], ["(given -2)", "(given 'int8')"]),
    ],
)
def test_a_setting_that_cannot_be_used(dualform: Command, out: Path, arguments: list[str], words: list[str]) -> None:
    assert_refused(dualform("compare", "gpt2", "tickets.csv", *QUICK, *arguments, "--out", out), *words)
    # Named before anything is made. (A device is tried only with the model.)
    assert not (out / "result.json").exists()


def test_a_setting_of_the_wrong_type(dualform: Command) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", "-k", "many")

    assert done.code == 2
    assert "'-k'" in done.err


def test_an_option_that_does_not_exist(dualform: Command) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", "--shots", "4")

    assert done.code == 2
    assert "--shots" in done.err


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "smollm2-136m",
            ["'smollm2-136m' is neither a packaged model", "Did you mean smollm2-135m?", "checkpoint folder"],
        ),
        ("someone/model", ["'someone/model'", "the model hub could not be reached", "try again with a network"]),
        ("./nowhere", ["no model folder at nowhere", "Check the path"]),
        ("nowhere.gguf", ["no GGUF file at nowhere.gguf", "Check the path"]),
    ],
)
def test_a_model_that_cannot_be_found(dualform: Command, out: Path, model: str, words: list[str]) -> None:
    assert_refused(dualform("compare", model, "tickets.csv", *QUICK, "--out", out), *words)


def test_a_folder_that_is_no_checkpoint(dualform: Command, out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    done = dualform("compare", tmp_path / "empty", "tickets.csv", *QUICK, "--out", out)

    assert_refused(done, "empty contains neither config.json")


def test_a_damaged_checkpoint(dualform: Command, out: Path, tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    done = dualform("compare", folder, "tickets.csv", *QUICK, "--out", out)

    assert_refused(done, "damaged could not be loaded as a causal language model")


def test_a_cache_that_cannot_be_written(dualform: Command, out: Path, workplace: Path) -> None:
    below_a_file = workplace / "tickets.csv" / "cache"

    done = dualform("compare", "smollm2-135m", "tickets.csv", *QUICK, "--out", out, DUALFORM_CACHE=str(below_a_file))

    assert_refused(done, f"cannot write {below_a_file}", "a part of the path is a file", "Set DUALFORM_CACHE")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("reveiws", ["no task 'reveiws'", "Did you mean 'reviews'?", "--data-dir"]),
        ("sst2", ["cannot load data set", "sst2", "--data-dir"]),
        ("someone/data", ["'someone/data'", "--data-dir"]),
        ("nowhere.csv", ["nowhere.csv does not exist", "Check the path"]),
        ("nowhere.yaml", ["nowhere.yaml does not exist", "Check the path"]),
        ("./nowhere", ["./nowhere does not exist", "Check the path"]),
    ],
)
def test_a_task_that_cannot_be_found(dualform: Command, out: Path, task: str, words: list[str]) -> None:
    assert_refused(dualform("compare", "gpt2", task, "--out", out), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "words"], ["no column 'words'", "Its columns are: body, topic", "--text"]),
        (["--label", "mood"], ["no column 'mood'", "Its columns are: body, topic", "--label"]),
        (["--label", "body"], ["column 'body'", "it is not a label", "--label"]),
        (["--label-words", "bad, "], ["label word '' of label 1", "is empty"]),
        (["--label-words", "bad"], ["1 label words (bad) for 2 labels", "negative, positive"]),
        (["--label-words", "good,good"], ["label word 'good'", "stands for labels 0 and 1", "different word"]),
        (["--label-words", "no=bad,yes=good"], ["label word 'bad' is given for 'no'", "negative, positive"]),
        (["--prompt", "Label:"], ["the prompt 'Label:' contains no field", "{text}"]),
        (["--prompt", "{mood}:"], ["{mood}", "Its fields are: body"]),
        (["--prompt", "{topic}:"], ["{topic}", "contains the answer"]),
        (["-k", "35"], ["35 demonstrations were requested", "has 34 rows", "at most 34"]),
        (["--context", "8"], ["do not fit the context of 8 tokens", "Raise --context"]),
    ],
)
def test_a_task_that_cannot_be_put_to_the_model(
    dualform: Command, out: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(dualform("compare", "gpt2", "tickets.csv", *QUICK, *arguments, "--out", out), *words)


def test_words_that_become_the_same_tokens(dualform: Command, out: Path, tmp_path: Path) -> None:
    folder = save_tiny("gpt2", tmp_path / "lower")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.save_pretrained(folder)

    done = dualform("compare", folder, "tickets.csv", *QUICK, "--label-words", "Good,good", "--out", out)

    assert_refused(done, "label words 'Good' and 'good' become the same tokens", "--label-words")


def test_a_label_outside_the_map(dualform: Command, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moods"
    folder.mkdir()
    about = {"name": "moods", "label_names": ["negative", "positive"], "splits": {"train": {"file": "train.jsonl"}}}
    (folder / "dataset.json").write_text(json.dumps(about))
    rows = [{"text": f"a film number {i}", "label": 7 if i == 5 else i % 2} for i in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    done = dualform("compare", "gpt2", folder, "--out", out)

    assert_refused(done, "train.jsonl, line 6", "label 7 is not among the 2 labels")


@pytest.mark.parametrize(
    ("text", "words"),
    [("body,topic\n", "contains no rows"), ("body,topic\na film,positive\n,negative\n", "the text of 'body' is empty")],
)
def test_data_without_anything_in_it(dualform: Command, out: Path, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(text)

    assert_refused(dualform("compare", "gpt2", path, *QUICK, "--out", out), "empty.csv", words)


def test_every_rate_diverges(dualform: Command, out: Path) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--rates", "1e30", "--out", out)

    assert_refused(done, "every learning rate tried diverged (1e+30)", "Give lower ones with --rates")


@pytest.mark.parametrize(("below", "why"), [("tickets.csv/run", "a part of the path is a file"), ("tickets.csv", "")])
def test_a_folder_that_cannot_be_written(dualform: Command, below: str, why: str) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--out", below)

    assert_refused(done, f"cannot write {below}", why, "choose another folder with --out")


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_table(table: Any, where: Path) -> None:
    Path(where).write_bytes(b"PAR1 and then")
    full()


@pytest.fixture
def finished(dualform: Command, out: Path) -> dict[str, bytes]:
    """The folder of an earlier run."""
    assert dualform("compare", "gpt2", "tickets.csv", *QUICK, "--out", out).code == 0
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_folder_that_holds_the_result_of_other_settings_is_refused(
    dualform: Command, out: Path, finished: dict[str, bytes]
) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--resamples", "60", "--out", out)

    assert_refused(done, f"{out} holds the result of other settings", "--out", "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == finished
    # The same settings may run again.
    assert dualform("compare", "gpt2", "tickets.csv", *QUICK, "--out", out).code == 0


@pytest.mark.parametrize("step", ["keeping a seed", "table", "page", "result"])
def test_a_disk_that_fills_leaves_the_earlier_result_and_nothing_half_written(
    dualform: Command, out: Path, finished: dict[str, bytes], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = Path.write_text
    arguments = ["compare", "gpt2", "tickets.csv", *QUICK, "--resamples", "60", "--out", out, "--overwrite"]

    def full_at_the_end(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.name.startswith(".report.html" if step == "page" else ".result.json"):
            write_text(path, "{", encoding="utf-8")
            full()
        return write_text(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        if step == "keeping a seed":
            patch.setattr(Path, "write_bytes", full)
        elif step == "table":
            patch.setattr(pq, "write_table", half_a_table)
        else:
            patch.setattr(Path, "write_text", full_at_the_end)
        done = dualform(*arguments)

    assert_refused(done, "the disk is full", "Free some space or choose another folder with --out")
    assert (out / "result.json").read_bytes() == finished["result.json"]
    assert not list(out.rglob("*.tmp"))
    # Only whole pieces are left: with space made, the same command ends well without a seed run twice.
    again = dualform(*arguments)
    assert again.code == 0
    assert {path.name for path in out.iterdir()} == finished.keys()
    assert ("seed 1: finished earlier" in (out / "log.txt").read_text()) is (step != "keeping a seed")


def test_a_fault_of_ours_is_not_taken_for_a_users_mistake(
    dualform: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise AssertionError("our fault")

    monkeypatch.setattr(RunFolder, "finish", broken)

    with pytest.raises(AssertionError, match="our fault"):
        dualform("compare", "gpt2", "tickets.csv", *QUICK, "--out", out)


def test_one_message_lists_all_mistakes(dualform: Command, out: Path) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--preset", "nonsense", "--out", out)

    assert re.fullmatch(r"error: [^\n]+\n", done.err)
