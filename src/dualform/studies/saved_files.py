"""The files of a saved learner, and the check that they answer as it does in memory."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from dualform.errors import ConfigError, ModelError
from dualform.learners.saved_parts import LinearHead, SavedParts
from dualform.learners.words import tfidf_vectorizer
from dualform.models.export import answer
from dualform.models.export.checkpoint import (
    atomic_folder,
    require_plain_weights,
    source_of,
    write_adapter,
    write_checkpoint,
)
from dualform.models.export.files import CARD, CLASSIFIER, PROGRAM, PROMPT, SAVED_FACTS
from dualform.models.export.licence import GEMMA_NOTICE, licence_of
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.blocks import enclosing_blocks
from dualform.plain_text import plain
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.learner_config import LearnersConfig
from dualform.studies.saved_choice import LearnerOfRun

Form = Literal["checkpoint", "lora"]
"""How changed weights are written: as a whole model, or as an adapter."""
_TOLERANCE = 1e-4
"""Largest difference of log-probabilities, nats, in float32 on the CPU. The fresh process reads a whole prompt at once,
which rounds differently."""
_TOLERANCE_ROUNDED = 0.05


@dataclass(frozen=True)
class LearnerFiles:
    """What is written for one adapted learner."""

    experiment: Experiment[LearnersConfig]
    drawn: DemonstrationSet
    choice: LearnerOfRun
    parts: SavedParts
    n_labels: int
    """Number of labels that it used."""
    table: Tensor
    """Log-probabilities of the answers to the first queries, `(example, answer)`."""

    @property
    def prompted(self) -> bool:
        """Whether queries are read after the demonstrations."""
        n = self.parts.n_prefix
        opening, whole = len(self.experiment.encoder.opening), len(self.drawn.encoded.prefix)
        if n not in (0, opening, whole):
            raise ModelError(
                f"the learner {self.choice.learner} cannot be saved: its prefix of {n} tokens is neither the opening "
                "nor the demonstrations. Save another learner of the run."
            )
        return n == whole and whole > opening

    def write(self, folder: Path, form: Form, rank: int, overwrite: bool) -> tuple[float, str]:
        """Write the folder; returns the difference between processes, nats, and what was written."""
        lm, deltas = self.experiment.lm, self.parts.deltas
        difference = 0.0

        def finish(unfinished: Path, source: str = "", arguments: dict[str, Any] | None = None) -> None:
            nonlocal difference
            adapter = form == "lora" and bool(deltas)
            self._write_facts(unfinished, source, arguments or {}, adapter=adapter)
            remedy = "Please report this model and task."
            if adapter:
                remedy = (
                    f"An adapter of rank {rank} may not hold the whole change: write a checkpoint, or raise --rank."
                )
            difference = self._difference(unfinished, remedy)

        base, more = source_of(lm, self.choice.config.model)
        # The program is run from any folder.
        base = str(Path(base).resolve()) if Path(base).is_dir() else base
        if deltas and form == "lora":
            what = "a LoRA adapter"
            card = self._readme(what, base)
            write_adapter(
                lm, deltas, folder, rank, card, base, overwrite, lambda unfinished: finish(unfinished, base, more)
            )
        elif deltas:
            require_plain_weights(lm)
            what = "a checkpoint"
            card, in_chat = self._readme(what, ""), self.experiment.encoder.form.chat
            write_checkpoint(lm, deltas, folder, card, overwrite, finish, chat_template=in_chat)
        else:
            what = "a prompt" if self.parts.head is None else "a classifier"
            with atomic_folder(folder, overwrite) as unfinished:
                (unfinished / CARD).write_text(self._readme(what, base), encoding="utf-8")
                finish(unfinished, base, more)
        return difference, what

    def _write_facts(self, folder: Path, source: str, arguments: dict[str, Any], *, adapter: bool) -> None:
        encoder, task, config = self.experiment.encoder, self.experiment.task, self.choice.config
        words = task.label_words or ()
        prefix = self.drawn.encoded.prefix if self.prompted else encoder.opening
        trust = {"trust_remote_code": True} if config.trust_remote_code else {}
        head = self.parts.head
        facts = {
            "learner": self.choice.learner,
            "labels": list(words),
            "fields": list(task.template.fields),
            "prompt": task.template.prompt,
            "answers": [list(ids) for ids in self.experiment.queries[0].answers],
            "model": {
                "source": source,
                "adapter": adapter,
                "dtype": str(self.experiment.lm.model.dtype).removeprefix("torch."),
                "arguments": {**arguments, **trust},
            },
            "prefix": list(prefix),
            "n_opening": len(encoder.opening),
            "split_special_tokens": encoder.splits_special_tokens,
            "chat": self._chat(),
            "shift": None if self.parts.shift is None else self.parts.shift.tolist(),
            "head": None if head is None else self._head(head),
        }
        text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / SAVED_FACTS).write_text(text + "\n", encoding="utf-8")
        (folder / PROGRAM).write_text(Path(answer.__file__).read_text(encoding="utf-8"), encoding="utf-8")
        if head is None or head.reads != "words":
            (folder / PROMPT).write_text(self._prompt_text(), encoding="utf-8")
        if head is not None:
            tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
            if head.idf is not None:
                tensors["idf"] = head.idf.contiguous()
            save_file(tensors, folder / CLASSIFIER)

    def _head(self, head: LinearHead) -> dict[str, Any]:
        vectorizer = tfidf_vectorizer()
        names = ("ngram_range", "sublinear_tf", "token_pattern")
        lm = self.experiment.lm
        return {
            "reads": head.reads,
            "classes": list(head.classes),
            "block": None if head.block is None else enclosing_blocks(lm.model, lm.anatomy)[head.block],
            "terms": list(head.terms),
            "settings": {name: getattr(vectorizer, name) for name in names},
        }

    def _chat(self) -> dict[str, Any] | None:
        chat = self.experiment.encoder.chat
        if chat is None:
            return None
        return {"messages": chat.messages(self._turns(), "")[:-1], "arguments": chat.arguments}

    def _turns(self) -> list[tuple[str, str]]:
        """The demonstrations in the prompt, as pairs of a prompt and an answer."""
        demonstrations, task = self.drawn.demonstrations, self.experiment.task
        if not self.prompted:
            return []
        return [
            (task.template.render(example), task.answers(example)[label].strip())
            for example, label in zip(demonstrations.examples, demonstrations.labels, strict=True)
        ]

    def _prompt_text(self) -> str:
        """The prompt as text, with the query's fields as `{name}`, for programs that take texts."""
        encoder, template = self.experiment.encoder, self.experiment.task.template
        if encoder.chat is not None:
            return json.dumps(encoder.chat.messages(self._turns(), template.prompt), indent=1, ensure_ascii=False)
        turns = (f"{text} {answer}{encoder.separator_text}" for text, answer in self._turns())
        return "".join(turns) + template.prompt

    def _readme(self, what: str, base: str) -> str:
        config, choice = self.choice.config, self.choice
        accuracy, n = choice.accuracy, len(self.experiment.queries)
        measured = "" if accuracy is None else f" Its accuracy in the run was {accuracy:.3f} (n = {n}, one seed)."
        names = " ".join(f'"{name}"' for name in self.experiment.task.template.fields)
        lines = [
            f"# {_code(choice.learner)} for {_code(config.task)}",
            f"This folder holds {what}, made from {_code(config.model)} with {self.n_labels} labels, seed "
            f"{choice.seed}.{measured}",
            f"To answer a query, without dualform: `python {PROGRAM} {names}`, or `python {PROGRAM} --rows FILE.jsonl` "
            "for many.",
        ]
        if self.parts.head is None:
            lines += [self._serving(what, base)]
        lines += [
            self._licence(),
            "The accuracy holds for texts like those of the task, with this prompt and these label words.",
        ]
        return "\n\n".join(lines) + "\n"

    def _licence(self) -> str:
        model_type = str(getattr(self.experiment.lm.model.config, "model_type", ""))
        licence = licence_of(self.choice.config.model, model_type)
        named = "" if licence is None else f" ({_code(licence.id)})"
        notice = f" {GEMMA_NOTICE}." if licence is not None and licence.id == "gemma" else ""
        return f"The base model's licence{named} applies to what was made from it.{notice}"

    def _serving(self, what: str, base: str) -> str:
        """How other programs run it; these commands are not run when the folder is made."""
        plain_prompt = f"Send it the text of `{PROMPT}` with the query's texts in the place of its fields."
        if what == "a LoRA adapter":
            server = f"`vllm serve {base} --enable-lora --lora-modules saved=path/to/this/folder`"
        else:
            server = f"`vllm serve {base or 'path/to/this/folder'}`"
        converted = "`convert_hf_to_gguf.py` of llama.cpp makes a file for `llama-server -m` from a checkpoint's folder"
        calibrated = (
            " The answers' log-probabilities must be shifted as `answer.py` does it."
            if self.parts.shift is not None
            else ""
        )
        return f"To serve it (not tried here): {server}; {converted}. {plain_prompt}{calibrated}"

    def _difference(self, folder: Path, remedy: str) -> float:
        """Run the written program in a fresh process on the first queries, and compare.

        Args:
            folder: Folder of the program.
            remedy: What to do if it answers otherwise.

        Raises:
            ModelError: It fails, or its log-probabilities are others.
        """
        names = self.experiment.task.template.fields
        examples = self.experiment.examples[: len(self.table)]
        with tempfile.TemporaryDirectory() as temporary:
            rows = Path(temporary) / "rows.jsonl"
            lines = (json.dumps({name: example.fields[name] for name in names}) for example in examples)
            rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            done = subprocess.run(
                [sys.executable, str(folder / PROGRAM), "--rows", str(rows)], capture_output=True, text=True
            )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"the saved learner does not run in a fresh process, so it was removed: {plain(last)}")
        answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        given = [[-torch.inf if score is None else score for score in each["scores"].values()] for each in answers]
        theirs, ours = torch.tensor(given, dtype=torch.float64), self.table
        same = (theirs == ours) | ((theirs - ours).abs() <= _tolerance(self.experiment.lm))
        if theirs.shape != ours.shape or not bool(same.all()):
            worst = float((theirs - ours).abs().nan_to_num(0.0).max()) if theirs.shape == ours.shape else float("nan")
            raise ModelError(
                f"the saved learner's log-probabilities differ by {worst:.1e} nats from those in memory, so it was "
                f"removed. {remedy}"
            )
        both = theirs.isfinite() & ours.isfinite()
        return float((theirs - ours)[both].abs().max()) if bool(both.any()) else 0.0


def _code(text: str) -> str:
    """A name from outside as Markdown code."""
    return f"`{plain(text).replace('`', chr(39))}`"


def _tolerance(lm: LanguageModel) -> float:
    exact = lm.model.dtype.itemsize >= 4 and lm.device.type == "cpu"
    return _TOLERANCE if exact else _TOLERANCE_ROUNDED


def holds_weights(folder: Path) -> bool:
    """Whether a folder has a checkpoint or an adapter."""
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def check_folder(folder: Path, overwrite: bool) -> None:
    """Check that a folder may be written or replaced, before long work.

    Raises:
        ConfigError: It exists and `overwrite` is False, or it holds anything but a saved learner.
    """
    if not folder.exists() or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"{folder} already exists. Choose another folder, or replace it with --overwrite.")
    if holds_weights(folder):
        return  # `check_target` decides
    known = {CARD, SAVED_FACTS, PROGRAM, PROMPT, CLASSIFIER}
    others = [folder.name] if not folder.is_dir() or folder.is_symlink() else []
    others = others or sorted({path.name for path in folder.iterdir()} - known)
    if others or not (folder / SAVED_FACTS).is_file():
        raise ConfigError(
            f"{folder} is not a folder of a saved learner ({others[0] if others else SAVED_FACTS}), so it will not be "
            "overwritten. Choose another folder, or remove it yourself."
        )
