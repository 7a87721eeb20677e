"""`dualform save`: a learner of a run as files that answer without dualform, verified in a fresh process."""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.chats import CHAT_FAMILIES
from tests.cli.conftest import SMALL, Done, as_at_a_shell, run_command
from tests.studies.small import sentences
from tests.tiny import save_tiny

Command = Callable[..., Done]
MEASURED = ("zsl", "icl", "icl_contextual", "lora", "lora_icl", "probe", "embedding", "tfidf", "knn")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, workplace: Path) -> Path:
    """A run with learners of every kind."""
    folder = tmp_path_factory.mktemp("run") / "run"
    given = ["llama", "tickets.csv", *SMALL, "--seeds", "1", "--controls", "none", "--learners", ",".join(MEASURED)]
    with as_at_a_shell(workplace):
        done = run_command("compare", *given, "--train-epochs", "2", "--out", folder)
    assert done.code == 0, done.err
    return folder


def answers_of(run: Path, learner: str) -> list[dict[str, Any]]:
    """The run's rows for one learner."""
    rows = pq.read_table(run / "examples.parquet").to_pylist()
    return [row for row in rows if row["learner"] == learner]


def program_of(folder: Path) -> Any:
    """The written program as a module."""
    spec = importlib.util.spec_from_file_location("saved_answer", folder / "answer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("learner", "what"),
    [
        ("icl", "a prompt"),
        ("icl_contextual", "a prompt"),
        ("lora", "a checkpoint"),
        ("lora_icl", "a checkpoint"),
        ("probe", "a classifier"),
        ("embedding", "a classifier"),
        ("tfidf", "a classifier"),
    ],
)
def test_the_written_program_answers_every_query_as_the_run_did(
    learner: str, what: str, run: Path, dualform: Command, tmp_path: Path
) -> None:
    to = tmp_path / "saved"
    done = dualform("save", run, learner, "--to", to)
    assert done.code == 0, done.err
    assert what in done.message
    assert "dualform" not in {line.split()[1] for line in _imports(to / "answer.py")}
    answerer, texts = program_of(to).Answerer(), [text for text, _ in sentences()]
    for row in answers_of(run, learner):
        found = answerer.answer({"text": texts[row["query"]]})
        expected = {name: row[f"log_probability:{name}"] for name in found["scores"]}
        for name, score in found["scores"].items():
            assert (score is None and math.isinf(expected[name])) or score == pytest.approx(expected[name], abs=1e-4)
    assert not [path for path in to.rglob("*") if path.suffix in (".pkl", ".bin", ".pt", ".joblib")]


def _imports(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip().startswith(("import ", "from "))]


def test_an_adapter_is_loaded_by_peft_and_equals_the_checkpoint(
    run: Path, dualform: Command, tmp_path: Path, workplace: Path
) -> None:
    done = dualform("save", run, "lora", "--to", tmp_path / "adapter", "--as", "lora")
    assert done.code == 0, done.err
    assert dualform("save", run, "lora", "--to", tmp_path / "whole").code == 0
    base = AutoModelForCausalLM.from_pretrained(workplace / "llama")
    plain = base(torch.tensor([[1, 5, 9, 7]])).logits
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(torch.tensor([[1, 5, 9, 7]])).logits
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()(torch.tensor([[1, 5, 9, 7]])).logits
    torch.testing.assert_close(adapted, whole, rtol=0, atol=1e-4)
    assert not torch.allclose(plain, whole, atol=1e-4)


def test_an_adapter_that_cannot_hold_the_change_is_not_written(run: Path, dualform: Command, tmp_path: Path) -> None:
    refused = dualform("save", run, "lora", "--to", tmp_path / "saved", "--as", "lora", "--rank", "1")
    assert refused.code == 2
    assert "An adapter of rank 1 may not hold the whole change" in refused.message
    assert not (tmp_path / "saved").exists()


def test_what_was_saved_is_replaced_only_when_asked_and_nothing_else_ever(
    run: Path, dualform: Command, tmp_path: Path
) -> None:
    to = tmp_path / "saved"
    assert dualform("save", run, "tfidf", "--to", to).code == 0
    refused = dualform("save", run, "tfidf", "--to", to)
    assert refused.code == 2
    assert "already exists" in refused.message
    assert dualform("save", run, "tfidf", "--to", to, "--overwrite").code == 0
    (to / "thesis.txt").write_text("three years of work")
    refused = dualform("save", run, "tfidf", "--to", to, "--overwrite")
    assert refused.code == 2
    assert "thesis.txt" in refused.message
    assert (to / "thesis.txt").read_text() == "three years of work"


def test_a_run_whose_data_have_changed_is_refused(run: Path, dualform: Command, tmp_path: Path) -> None:
    table = pq.read_table(run / "examples.parquet")
    other = tmp_path / "run"
    shutil.copytree(run, other)
    names = [name for name in table.column_names if name.startswith("log_probability:")]
    swapped = table.rename_columns([{names[0]: names[1], names[1]: names[0]}.get(n, n) for n in table.column_names])
    pq.write_table(swapped.select(table.column_names), other / "examples.parquet")
    refused = dualform("save", other, "tfidf", "--to", tmp_path / "saved")
    assert refused.code != 0
    assert "otherwise than in the run" in refused.message
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["bitfit"], "did not measure the learner 'bitfit'"),
        (["lora", "--seed", "7"], "no seed 7"),
        (["lora", "--labels", "8"], "Leave out --labels"),
        (["lora", "--as", "lora", "--rank", "0"], "--rank 0"),
        (["lora", "--rank", "4"], "add --as lora"),
        (["icl", "--as", "lora"], "leave out --as lora"),
        (["knn"], "cannot be saved"),
    ],
)
def test_a_mistake_exits_2_and_names_the_value(
    given: list[str], words: str, run: Path, dualform: Command, tmp_path: Path
) -> None:
    done = dualform("save", run, *given, "--to", tmp_path / "saved")
    assert done.code == 2
    assert words in done.message
    assert not (tmp_path / "saved").exists()


def test_a_folder_without_a_result_is_refused(dualform: Command, tmp_path: Path) -> None:
    done = dualform("save", tmp_path, "lora", "--to", tmp_path / "saved")
    assert done.code == 2
    assert "has no result.json" in done.message


def test_a_learner_of_a_run_of_advice_is_saved_with_its_budget(dualform: Command, out: Path, tmp_path: Path) -> None:
    save_tiny("gemma3", tmp_path / "base")
    small = ["--text", "body", "--label", "topic", "--limit", "8", "--resamples", "20"]
    given = ["--labels", "3,6", "--seeds", "1,2", "--learners", "tfidf,icl_batch"]
    assert dualform("advise", tmp_path / "base", "tickets.csv", *small, *given, "--out", out).code == 0
    done = dualform("save", out, "tfidf", "--labels", "6", "--seed", "2", "--to", tmp_path / "words")
    assert done.code == 0, done.err
    assert "seed 2, 6 labels" in done.message
    refused = dualform("save", out, "tfidf", "--labels", "5", "--to", tmp_path / "other")
    assert refused.code == 2
    assert "Give one of 3, 6" in refused.message
    facts = json.loads((tmp_path / "words" / "saved.json").read_text())
    assert facts["head"]["reads"] == "words"
    assert "Gemma is provided under and subject to" in (tmp_path / "words" / "README.md").read_text(encoding="utf-8")


def test_prompts_and_weights_for_chats_are_saved_with_their_messages(
    dualform: Command, out: Path, tmp_path: Path
) -> None:
    base = save_tiny("llama", tmp_path / "base")
    CHAT_FAMILIES["chatml"].tokenizer().save_pretrained(base)
    given = [base, "tickets.csv", *SMALL, "--seeds", "1", "--controls", "none", "--learners", "zsl,icl,lora"]
    done = dualform("compare", *given, "--train-epochs", "2", "--chat", "on", "--system", "Be brief.", "--out", out)
    assert done.code == 0, done.err
    for learner, n_turns in (("icl", 4), ("lora", 0)):
        saved = dualform("save", out, learner, "--to", tmp_path / learner)
        assert saved.code == 0, saved.err
        facts = json.loads((tmp_path / learner / "saved.json").read_text())
        roles = [message["role"] for message in facts["chat"]["messages"]]
        assert roles == ["system", *["user", "assistant"] * n_turns]
