"""A fold of chats keeps the chat template, and its card's program reproduces the measured answers."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dualform.models.reading.chat import FIXED_DATE, choose_form
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.experiment import Experiment
from dualform.studies.fold.config import FoldConfig, fold_config
from dualform.studies.fold.run import fold
from dualform.tasks.sources import load_task
from dualform.tasks.task import Example, Task
from tests.chats import CHAT_FAMILIES
from tests.studies.fold.test_run import program_of
from tests.studies.small import small_task, write_choices
from tests.tiny import save_tiny

SYSTEM = "Answer with 'one' word."
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ '<|im_start|>tool\nToday: ' + date_string + '<|im_end|>\n' }}"
)
pytestmark = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = save_tiny("llama", tmp_path / "base")
    tokenizer = CHAT_FAMILIES["chatml"].tokenizer()
    tokenizer.chat_template = DATED + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    return folder


def lm_of(folder: Path) -> LanguageModel:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return LanguageModel.wrap(model, AutoTokenizer.from_pretrained(folder), str(folder))


def config_of(base: Path, **changes: Any) -> FoldConfig:
    settings: dict[str, Any] = {"k": 4, "limit": 6, "resamples": 20, "fold": {"texts": 8, "plain": "none"}}
    return fold_config(str(base), "toy", chat="on", system=SYSTEM, **(settings | changes))


def folded(base: Path, task: Task, **changes: Any) -> Path:
    to = base.parent / "folded"
    fold(config_of(base, **changes), to, lm=lm_of(base), task=task)
    return to


def program(folder: Path) -> dict[str, Any]:
    """The variables of the card's program after it was run."""
    (text,) = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(text.replace("path/to/this/folder", str(folder)), names)
    return names


def scores(folder: Path, base: Path, task: Task) -> tuple[torch.Tensor, tuple[Example, ...]]:
    """Log-probabilities of the answers that a folded checkpoint gives zero-shot, and their queries."""
    lm = lm_of(folder)
    experiment = Experiment.of(config_of(base), lm, task)
    prefix = lm.encode(experiment.encoder.opening)
    return lm.log_probabilities(prefix, experiment.queries), experiment.examples


def test_the_program_of_the_card_reproduces_the_checkpoint_s_answers(base: Path) -> None:
    task = small_task()
    folder = folded(base, task)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "written by the tokenizer's chat template" in card
    assert f"date_string={FIXED_DATE!r}" in card
    assert "after one space" not in card
    # It compares the scores of the card's example with those that were measured.
    names = program_of(folder, base)
    table, examples = scores(folder, base, task)
    for row, example in zip(table.tolist(), examples, strict=True):
        found = names["scores"](text=example.fields["text"])
        assert [found[word] for word in task.label_words or ()] == pytest.approx(row, abs=1e-4)


def test_the_program_of_an_adapter_reproduces_its_example(base: Path) -> None:
    names = program_of(folded(base, small_task(), form="lora", rank=32), base)
    assert names["SYSTEM"] == [{"role": "system", "content": SYSTEM}]


def test_choices_have_the_same_tokens_in_the_program(base: Path) -> None:
    task = load_task(write_choices(base.parent / "choices.jsonl"), text="goal", choices="choices")
    folder = folded(base, task)
    names = program(folder)
    table, examples = scores(folder, base, task)
    for row, example in zip(table.tolist(), examples, strict=True):
        found = names["scores"](example.choices, **example.fields)
        assert list(found.values()) == pytest.approx(row[: len(found)], abs=1e-4)


def test_a_checkpoint_keeps_the_template_and_is_read_as_chats_by_auto(base: Path) -> None:
    folder = folded(base, small_task())
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert not choose_form(lm_of(base), "auto").chat
    form = choose_form(lm_of(folder), "auto")
    assert form.chat
    assert "its model card has the tag conversational" in form.reason
