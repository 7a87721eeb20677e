"""The parts of a result that describe its origin: model, task, machine and command."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from dualform._version import __version__
from dualform.models.loading.identity import cached_commit
from dualform.models.reading.language_model import LanguageModel
from dualform.result import Baselines, DemonstrationReport, Result
from dualform.studies.experiment import Experiment
from dualform.studies.settings import StudyConfig
from dualform.tasks.task import Example, Task

Kind = TypeVar("Kind", bound=Result)


@dataclass(frozen=True)
class TaskDescription:
    """A task and its queries, as a result describes them."""

    task: Task
    examples: tuple[Example, ...]
    """The reported queries, in the order of every `(example, ...)` tensor."""
    n_selection: int
    """Number of queries on which choices, such as that of a learning rate, are made."""
    report_split: str
    """Name of the split of the reported queries."""
    selection_split: str
    """Name of the split of the selection queries."""
    prompt_tokens: float
    """Mean length of a query's prompt, tokens."""
    context: int
    """Largest number of tokens of a sequence: the setting, or the model's limit if that is lower."""
    notes: tuple[str, ...]
    """Notes on the protocol, which become warnings of the result."""
    opening: tuple[str, ...] = ()
    """The tokens that begin every sequence."""
    separator: tuple[str, ...] = ()
    """The tokens after every demonstration, the last one included."""
    separator_text: str = ""
    """The separator as text."""
    prompt: str = ""
    """The first reported query as the model reads it."""
    form: str = "plain"
    """Form of the prompts: `plain`, or `chat` if the chat template writes them as turns of a conversation."""
    form_reason: str = ""
    """Why prompts have this form."""

    @classmethod
    def of(cls, experiment: Experiment[StudyConfig], notes: tuple[str, ...]) -> "TaskDescription":
        """Describe the task of an experiment.

        Args:
            experiment: Model, task and queries.
            notes: Notes of the study, to be followed by those of the experiment.
        """
        return cls(
            task=experiment.task,
            examples=experiment.examples,
            n_selection=len(experiment.selection),
            report_split=experiment.report_split,
            selection_split=experiment.selection_split,
            prompt_tokens=sum(len(query.prompt) for query in experiment.queries) / len(experiment.queries),
            context=experiment.context,
            notes=(*notes, *experiment.notes()),
            opening=experiment.encoder.opened.tokens,
            separator=experiment.encoder.tokens.names(experiment.encoder.separator),
            separator_text=experiment.encoder.separator_text,
            prompt=experiment.encoder.prompt_text(experiment.examples[0]),
            form="chat" if experiment.encoder.form.chat else "plain",
            form_reason=experiment.encoder.form.reason,
        )

    @cached_property
    def baselines(self) -> Baselines:
        """Chance and majority baseline on the reported queries."""
        return baselines_of(self.task, self.examples)

    @property
    def labels(self) -> torch.Tensor:
        """Right answers of the reported queries, `(example,)`."""
        return torch.tensor([example.label for example in self.examples])

    def answer_name(self, label: int) -> str:
        """The name of a label in tables: its word, or its number among free-text choices."""
        words = self.task.label_words
        return str(label) if words is None else words[label]


def model_facts(lm: LanguageModel) -> dict[str, Any]:
    """See `Result.model`."""
    return {
        "name": lm.name,
        "architecture": type(lm.model).__name__,
        "parameters": lm.n_parameters,
        "n_layers": len(lm.anatomy.layers),
        "n_heads": lm.anatomy.n_heads,
        "d_model": int(lm.model.get_input_embeddings().weight.shape[1]),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "route": lm.route.name,
        "revision": cached_commit(lm.name),
        "vocabulary": int(lm.model.get_input_embeddings().weight.shape[0]),
        "notes": list(lm.notes),
    }


def task_facts(description: TaskDescription) -> dict[str, Any]:
    """See `Result.task`."""
    task = description.task
    return {
        "name": task.name,
        "source": task.source,
        "label_words": None if task.label_words is None else list(task.label_words),
        "labels": _words_by_label(task),
        "prompt": description.prompt or task.template.render(description.examples[0]),
        "prompt_tokens": description.prompt_tokens,
        "opening": list(description.opening),
        "separator": description.separator_text,
        "separator_tokens": list(description.separator),
        "form": description.form,
        "form_reason": description.form_reason,
        "n_report": len(description.examples),
        "report_split": description.report_split,
        "n_selection": description.n_selection,
        "selection_split": description.selection_split,
    }


def baselines_of(task: Task, examples: Sequence[Example]) -> Baselines:
    """Accuracies on these queries of guessing and of always giving the most frequent label."""
    labels = [example.label for example in examples]
    choices = [len(task.answers(example)) for example in examples]
    n_answers = max(choices)
    counts = [labels.count(label) for label in range(n_answers)]
    names = task.label_words or tuple(map(str, range(n_answers)))
    majority = counts.index(max(counts))
    return Baselines(
        chance=sum(1 / n for n in choices) / len(choices),
        majority=counts[majority] / len(labels),
        majority_label=names[majority],
        label_counts=dict(zip(names, counts, strict=True)),
        n=len(labels),
    )


def baseline_notes(task: Task, baselines: Baselines) -> list[str]:
    """A warning where all queries have the same right answer."""
    if baselines.majority == 1.0 and baselines.n > 1:
        what = f"choice {baselines.majority_label}" if task.is_multiple_choice else f"“{baselines.majority_label}”"
        return [
            f"The right answer to all {baselines.n} reported queries is {what}, so accuracy only measures how often a "
            "learner gives that one answer. Use queries of every label."
        ]
    return []


def _words_by_label(task: Task) -> dict[str, str] | None:
    """Label as in the data -> its label word, in label order; None for multiple choice."""
    if task.label_words is None:
        return None
    return dict(zip(task.label_names or task.label_words, task.label_words, strict=True))


def demonstration_report(k: int, seeds: Mapping[int, tuple[Sequence[int], int]]) -> DemonstrationReport:
    """See `Result.demonstrations`.

    Args:
        k: Number of demonstrations requested.
        seeds: Seed -> row numbers of its demonstrations, and their number of tokens.
    """
    return DemonstrationReport(
        k_requested=k,
        k_effective=min(len(rows) for rows, _ in seeds.values()),
        k_effective_per_seed={str(seed): len(rows) for seed, (rows, _) in seeds.items()},
        rows={str(seed): list(rows) for seed, (rows, _) in seeds.items()},
        tokens={str(seed): tokens for seed, (_, tokens) in seeds.items()},
    )


def task_result(
    kind: type[Kind],
    study: str,
    config: StudyConfig,
    description: TaskDescription,
    *,
    model: dict[str, Any],
    environment: dict[str, Any],
    warnings: Sequence[str] = (),
    **parts: Any,
) -> Kind:
    """A result with the fields that all studies of a task share.

    Args:
        kind: The class of the study's results.
        study: See `Result.study`.
        config: The settings.
        description: The task and its queries.
        model: See `Result.model`; its `notes` are repeated among the warnings.
        environment: See `Result.environment`.
        warnings: Warnings of the study; they follow those on model, task and queries.
        parts: The study's own fields of the result.
    """
    task = description.task
    notes = (*model.get("notes", ()), *description.notes, *task.notes, *baseline_notes(task, description.baselines))
    return kind(
        dualform=__version__,
        study=study,
        config=config.model_dump(mode="json"),
        environment=environment,
        model=model,
        baselines=description.baselines,
        warnings=[*notes, *warnings],
        **{"task": task_facts(description), **parts},
    )


def own_result(study: str, experiment: Experiment[Any], numbers: dict[str, Any], start: float) -> Result:
    """The result of a study of another package.

    Args:
        study: Name of the study.
        experiment: Its model, task and settings.
        numbers: Its numbers by name; they become `Result.own`.
        start: `time.perf_counter()` when it began.
    """
    return task_result(
        Result,
        study,
        experiment.config,
        TaskDescription.of(experiment, ()),
        model=model_facts(experiment.lm),
        environment=environment(experiment.lm.device, time.perf_counter() - start),
        own=numbers,
    )


def environment(device: torch.device | str, seconds: float) -> dict[str, Any]:
    """See `Result.environment`."""
    packages = ("torch", "transformers", "peft", "scikit-learn", "scipy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "command": _command(),
    }


def _command() -> str | None:
    """The running command, quoted for a shell; None where it is not `dualform`."""
    if not sys.argv or Path(sys.argv[0]).stem != "dualform":
        return None
    return shlex.join(["dualform", *sys.argv[1:]])
