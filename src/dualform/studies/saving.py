"""Saving one learner of a finished run, as files that answer queries without dualform.

The learner is adapted again, with the run's settings, seed and learning rate. Its answers are compared with those of
the run, and with those of the written files in a fresh process, before anything is put into place.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.saved_parts import LinearHead, SavedParts
from dualform.learners.words import tfidf_vectorizer
from dualform.models.editing.edit import require_trainable
from dualform.models.export import answer
from dualform.models.export.checkpoint import (
    atomic_folder,
    check_target,
    require_plain_weights,
    source_of,
    write_adapter,
    write_checkpoint,
)
from dualform.models.export.files import CARD, CLASSIFIER, PROGRAM, PROMPT, SAVED_FACTS
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.models.structure.blocks import enclosing_blocks
from dualform.plain_text import plain
from dualform.progress import Progress, SilentProgress
from dualform.result import Accuracy, Result
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.learner_config import LearnersConfig
from dualform.studies.learner_training import train_learner
from dualform.studies.study import study_of_result
from dualform.tasks.task import Task

Form = Literal["checkpoint", "lora"]
VERIFIED_QUERIES = 8
"""Queries whose answers are compared."""
_TOLERANCE = 1e-4
"""Largest difference of log-probabilities, nats, in float32 on the CPU. The fresh process reads a whole prompt at once,
which rounds differently."""
_TOLERANCE_ROUNDED = 0.05
_SILENT = SilentProgress()


@dataclass(frozen=True)
class Saved:
    """A saved learner."""

    folder: Path
    what: str
    """What the folder holds, such as `a checkpoint`."""
    seed: int
    labels: int
    """Number of labels that it was adapted to."""
    accuracy: float | None
    """Its accuracy in the run, with this seed, in [0, 1]."""
    n: int
    """Number of queries of that accuracy."""
    difference: float
    """Largest difference of log-probabilities between this process and a fresh one, nats."""


@dataclass(frozen=True)
class _Choice:
    """One adapted learner of a run."""

    config: LearnersConfig
    learner: str
    seed: int
    budget: int | None
    rate: float | None
    """The learning rate that the run used; None if the run does not say."""


def choose(result: Result, learner: str, seed: int | None, labels: int | None) -> _Choice:
    """Find a learner in a run's result.

    Args:
        result: The run's result.
        learner: Name of the learner.
        seed: Seed of the demonstrations; None for the run's first.
        labels: Budget of labels; None for the run's largest, or if it has only one.

    Raises:
        ConfigError: The run did not measure that.
    """
    study = study_of_result(result)
    kind = None if study is None else study.config()
    if kind is None or not issubclass(kind, LearnersConfig):
        raise ConfigError(
            f"a learner cannot be saved from the study {result.study!r}: give the folder of a run of compare or advise"
        )
    config = kind.model_validate(result.config)
    measured = _accuracies(result)
    if learner not in measured:
        raise ConfigError(f"the run did not measure the learner {learner!r}. It measured {', '.join(measured)}.")
    seeds = [int(name) for name in measured[learner][-1].per_seed]
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise ConfigError(f"the run has no seed {seed}. Its seeds are {', '.join(map(str, seeds))}.")
    budgets = _budgets(result)
    known = budgets or [n for n in [config.label_budget] if n is not None]
    if labels is not None and labels not in known:
        remedy = f"Give one of {', '.join(map(str, known))}." if known else "Leave out --labels."
        raise ConfigError(f"the run has no budget of {labels} labels. {remedy}")
    if budgets:
        labels = budgets[-1] if labels is None else labels
        with_budget: Callable[[int], LearnersConfig] = config.with_budget  # type: ignore[attr-defined]
        config = with_budget(labels)
    rates = {
        trial.learning_rate
        for trial in result.trials
        if trial.learner == learner and trial.seed == seed and trial.chosen
    }
    # A run with several budgets does not say which rate belongs to which, so it is chosen again, in the same way.
    rate = rates.pop() if len(rates) == 1 and not budgets else None
    return _Choice(config, learner, seed, config.label_budget, rate)


@ordinary_torch()
def save_learner(
    run: Path,
    result: Result,
    learner: str,
    folder: Path,
    *,
    seed: int | None = None,
    labels: int | None = None,
    form: Form = "checkpoint",
    rank: int | None = None,
    overwrite: bool = False,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    progress: Progress = _SILENT,
) -> Saved:
    """Adapt a learner of a run again, and write it.

    Args:
        run: The run's folder; `examples.parquet` in it has the answers that are compared.
        result: The run's result.
        learner: Name of the learner.
        folder: Destination, which is written completely or not at all.
        seed: As in `choose`.
        labels: As in `choose`.
        form: How changed weights are written: as a checkpoint of the whole model, or as a LoRA adapter.
        rank: Rank of the adapter; None for that of the settings of lora.
        overwrite: Whether to replace what an earlier save wrote.
        lm: The model, if it is already loaded.
        task: The task, if it is already loaded.
        progress: Receives the work done.

    Raises:
        ConfigError: The run, learner or folder cannot be used.
        ModelError: The learner cannot be saved, or the run's model or data have changed.
    """
    choice = choose(result, learner, seed, labels)
    config = choice.config
    _check_folder(folder, overwrite)
    task = task or config.load_task()
    if task.label_words is None:
        raise ConfigError(
            f"task {task.name!r} is multiple choice: a learner can be saved only for a task with label words"
        )
    lm = lm or config.load_model(config.model)
    if _holds_weights(folder):
        check_target(lm, folder, overwrite)
    experiment = Experiment.of(config, lm, task, report_split=_split(result), select_on=_select_on(config))
    drawn = experiment.draw(choice.seed)
    entry = LEARNERS[learner]
    entry.check(lm, config)
    entry.prepare(experiment)
    progress.start(4.0)
    context = AdaptationContext(experiment, drawn)
    progress.advance(0.0, "adapting")
    adapted: Any
    if entry.grid is None:
        adapted = entry.adapt(context)
    else:
        require_trainable(lm.model)
        adapted = train_learner(experiment, entry, context, choice.rate).best
    progress.advance(2.0, "adapting")
    if not hasattr(adapted, "saved_parts"):
        raise ModelError(
            f"the learner {learner} cannot be saved: it does something at every query that plain transformers does "
            "not. Save another learner of the run."
        )
    parts: SavedParts = adapted.saved_parts()
    queries = experiment.queries[:VERIFIED_QUERIES]
    table = answer_log_probabilities(adapted, lm, queries)
    _compare_with_run(run, experiment, choice, table)
    progress.advance(1.0, "writing")
    writer = _Writer(experiment, drawn, choice, parts, result, table, _tolerance(lm))
    difference, what = writer.write(folder, form, rank or config.lora.rank, overwrite)
    progress.advance(1.0, "writing")
    accuracy, n = writer.accuracy()
    return Saved(folder, what, choice.seed, writer.n_labels, accuracy, n, difference)


@dataclass(frozen=True)
class _Writer:
    experiment: Experiment[LearnersConfig]
    drawn: DemonstrationSet
    choice: _Choice
    parts: SavedParts
    result: Result
    table: Tensor
    """Log-probabilities of the answers to the first queries, `(example, answer)`."""
    tolerance: float

    @property
    def n_labels(self) -> int:
        """Number of labels that the learner could use."""
        return len(self.drawn.labelled.examples)

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

    def accuracy(self) -> tuple[float | None, int]:
        """Accuracy in the run with this seed, and its number of queries."""
        accuracies, budgets = _accuracies(self.result)[self.choice.learner], _budgets(self.result)
        accuracy = accuracies[budgets.index(self.choice.budget) if self.choice.budget in budgets else 0]
        return accuracy.per_seed.get(str(self.choice.seed)), len(self.experiment.queries)

    def write(self, folder: Path, form: Form, rank: int, overwrite: bool) -> tuple[float, str]:
        """Write the folder; returns the difference between processes, nats, and what was written."""
        lm, deltas = self.experiment.lm, self.parts.deltas
        difference = 0.0

        def finish(unfinished: Path, source: str = "", arguments: dict[str, Any] | None = None) -> None:
            nonlocal difference
            self._write_facts(unfinished, source, arguments or {}, adapter=form == "lora" and bool(deltas))
            difference = self._difference(unfinished)

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
        accuracy, n = self.accuracy()
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
            "The base model's licence applies to what was made from it. The accuracy holds for texts like those of "
            "the task, with this prompt and these label words.",
        ]
        return "\n\n".join(lines) + "\n"

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

    def _difference(self, folder: Path) -> float:
        """Run the written program in a fresh process on the first queries, and compare.

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
        same = (theirs == ours) | ((theirs - ours).abs() <= self.tolerance)
        if theirs.shape != ours.shape or not bool(same.all()):
            worst = float((theirs - ours).abs().nan_to_num(0.0).max()) if theirs.shape == ours.shape else float("nan")
            raise ModelError(
                f"the saved learner's log-probabilities differ by {worst:.1e} nats from those in memory, so it was "
                "removed. Please report this model and task."
            )
        both = theirs.isfinite() & ours.isfinite()
        return float((theirs - ours)[both].abs().max()) if bool(both.any()) else 0.0


def _budgets(result: Result) -> list[int]:
    """The budgets of labels of a result with several; empty for other results."""
    return list(getattr(getattr(result, "advice", None), "budgets", []))


def _accuracies(result: Result) -> dict[str, list[Accuracy]]:
    """Learner -> its accuracy, or with several budgets that of each of them."""
    advice: Any = getattr(result, "advice", None)
    if advice is None:
        return {learner: [accuracy] for learner, accuracy in result.accuracy.items()}
    return {learner: [point.accuracy for point in points] for learner, points in advice.curves.items()}


def _code(text: str) -> str:
    """A name from outside as Markdown code."""
    return f"`{plain(text).replace('`', chr(39))}`"


def _tolerance(lm: LanguageModel) -> float:
    exact = lm.model.dtype.itemsize >= 4 and lm.device.type == "cpu"
    return _TOLERANCE if exact else _TOLERANCE_ROUNDED


def _split(result: Result) -> str | None:
    """The split of the run's queries."""
    split = result.task.get("report_split")
    return None if split is None else str(split)


def _select_on(config: LearnersConfig) -> Literal["validation", "report"]:
    return "report" if getattr(config, "select_on", "validation") == "report" else "validation"


def _compare_with_run(run: Path, experiment: Experiment[LearnersConfig], choice: _Choice, table: Tensor) -> None:
    """Check that the learner answers as in the run.

    Raises:
        ModelError: It does not, because the model, the data or dualform have changed.
    """
    path = run / "examples.parquet"
    if not path.is_file():
        raise ConfigError(f"{run} has no examples.parquet, with which the saved learner's answers are compared")
    rows = pq.read_table(path)
    wanted: list[tuple[str, Any]] = [("learner", choice.learner), ("seed", choice.seed)]
    if "labels" in rows.column_names:
        wanted.append(("labels", choice.budget))
    for column, value in wanted:
        rows = rows.filter(pc.equal(rows[column], value))
    names = [name for name in rows.column_names if name.startswith("log_probability:")]
    known = {row["query"]: [row[name] for name in names] for row in rows.to_pylist()}
    for example, ours in zip(experiment.examples, table.tolist(), strict=False):
        theirs = known.get(example.row)
        if theirs is None or not torch.allclose(
            torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=0.02
        ):
            raise ModelError(
                f"the learner {choice.learner} answers {example.place} otherwise than in the run, so its accuracy "
                "there is not that of what would be saved. The model, the data, the machine or dualform have "
                "changed: repeat the run, then save."
            )


def _holds_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Check that a folder may be written or replaced, before long work.

    Raises:
        ConfigError: It exists and `overwrite` is False, or it holds anything but a saved learner.
    """
    if not folder.exists() or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"{folder} already exists. Choose another folder, or replace it with --overwrite.")
    if _holds_weights(folder):
        return  # `check_target` decides
    known = {CARD, SAVED_FACTS, PROGRAM, PROMPT, CLASSIFIER}
    others = [folder.name] if not folder.is_dir() or folder.is_symlink() else []
    others = others or sorted({path.name for path in folder.iterdir()} - known)
    if others or not (folder / SAVED_FACTS).is_file():
        raise ConfigError(
            f"{folder} is not a folder of a saved learner ({others[0] if others else SAVED_FACTS}), so it will not be "
            "overwritten. Choose another folder, or remove it yourself."
        )
