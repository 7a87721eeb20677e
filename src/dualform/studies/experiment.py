"""The setup that all seeds of a study share: model, task, splits and queries."""

import hashlib
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from dualform.errors import ContextError
from dualform.models.cost.work import QueryPass
from dualform.models.loading.identity import digest_of_weights
from dualform.models.loading.offloading import named_weights, weight_of
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.truncation import n_tokens, truncate_examples
from dualform.studies.settings import StudyConfig
from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.task import Example, Task

Config = TypeVar("Config", bound=StudyConfig, covariant=True)


@dataclass(frozen=True)
class Experiment(Generic[Config]):
    """The setup of one study of one model and task, which all its seeds share."""

    config: Config
    """The study's settings."""
    lm: LanguageModel
    task: Task
    """The task, with its texts truncated if the settings say so."""
    encoder: Encoder
    """Encodes the task's texts for the model."""
    report_split: str
    """Name of the split from which the reported queries are taken."""
    selection_split: str
    """Name of the split on which choices, such as that of a learning rate, are made."""
    examples: tuple[Example, ...]
    """Examples whose answers are reported."""
    queries: tuple[Query, ...]
    """The same as tokens, in the same order."""
    selection: tuple[Example, ...]
    """Examples by which choices are made; empty if they are made inside a budget of labels."""
    selection_queries: tuple[Query, ...]
    """The same as tokens, in the same order."""
    context: int
    """Largest number of tokens of a sequence: the setting, or the model's limit if that is lower."""

    @classmethod
    def of(
        cls,
        config: Config,  # type: ignore[misc] # only kept, never written to, so covariance is safe
        lm: LanguageModel,
        task: Task,
        *,
        report_split: str | None = None,
        select_on: Literal["validation", "report"] = "validation",
    ) -> "Experiment[Config]":
        """Choose the splits and queries, and tokenise the queries.

        Args:
            config: The study's settings.
            lm: The model.
            task: The task.
            report_split: Split of the reported queries; None for the task's own.
            select_on: The queries on which choices, such as that of a learning rate, are made: `validation` for those
                of the selection split, `report` for the reported queries themselves.

        Raises:
            ContextError: A query alone is longer than the context.
        """
        encoder = encoder_for(config, lm, task)
        limit = lm.max_positions
        context = config.context if limit is None else min(config.context, limit)
        task = _with_notes(config, task, encoder, context)
        if config.truncate:
            encoder = encoder_for(config, lm, task)
        encoder.check_all()
        report_split = report_split or task.report_split
        selection_split = report_split if select_on == "report" else task.selection_split
        if selection_split == report_split and select_on == "validation":
            # The requested split is the one that this task selects on, so the two are swapped.
            selection_split = task.report_split
        examples = sample(task.split(report_split), config.limit)
        if config.label_budget is not None:
            # Settings are chosen inside the budget, so no other labelled example is read.
            selection: tuple[Example, ...] = ()
        elif select_on == "report":
            selection = examples
        else:
            selection = sample(task.split(selection_split), config.selection_limit)
        queries = tuple(encoder.query(example) for example in examples)
        selection_queries = tuple(encoder.query(example) for example in selection)
        _require_room(
            {report_split: (examples, queries), selection_split: (selection, selection_queries)},
            context,
            len(encoder.opening),
        )
        return cls(
            config=config,
            lm=lm,
            task=task,
            encoder=encoder,
            report_split=report_split,
            selection_split=selection_split,
            examples=examples,
            queries=queries,
            selection=selection,
            selection_queries=selection_queries,
            context=context,
        )

    def notes(self) -> tuple[str, ...]:
        """Notes on tokenisation; complete once everything has been encoded."""
        return self.encoder.notes()

    @cached_property
    def weights_digest(self) -> str:
        """`weights_digest` of the model, cached because a study leaves the weights unchanged."""
        return weights_digest(self.lm)

    @property
    def labels(self) -> Tensor:
        """Right answers of the reported queries, `(example,)`."""
        return torch.tensor([example.label for example in self.examples])

    @property
    def selection_labels(self) -> list[int]:
        """Right answers of the selection queries."""
        return [example.label for example in self.selection]

    def draw_all(self, seeds: Sequence[int]) -> "dict[int, DemonstrationSet]":
        """Draw the demonstrations of every seed. If some do not fit the context, one warning covers all seeds."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sets = {seed: self.draw(seed) for seed in seeds}
        if caught:
            more = f"; the same holds for {len(caught) - 1} more of the {len(seeds)} seeds" if len(caught) > 1 else ""
            warnings.warn(f"{caught[0].message}{more}", stacklevel=2)
        return sets

    def draw(self, seed: int) -> "DemonstrationSet":
        """Draw the demonstrations that all learners of a seed use."""
        config = self.config
        n = config.k if config.label_budget is None else config.label_budget
        labelled = draw_demonstrations(self.task, n, seed, balanced=config.balanced, label_rule=config.label_rule)
        if config.label_budget is None:
            return self.encode(self._fitting(labelled))
        return self.with_labels(labelled)

    def with_labels(self, labelled: Demonstrations) -> "DemonstrationSet":
        """The demonstrations of a prompt, taken from a budget of labelled examples.

        The prompt gets as many as the settings and the context allow, taken from each class in turn; learners that are
        trained also use the rest.
        """
        self._require_room_for(labelled)
        demonstrations = self._fitting(labelled.classes_in_turn(self.config.k))
        rest = labelled.without(demonstrations)
        return self.encode(demonstrations, rest)

    def _require_room_for(self, labelled: Demonstrations) -> None:
        """Refuse labelled examples that alone are longer than the context, on which nothing could be trained."""
        queries = tuple(self.encoder.query(example) for example in labelled.examples)
        _require_room({"train": (labelled.examples, queries)}, self.context, len(self.encoder.opening))

    def _fitting(self, demonstrations: Demonstrations) -> Demonstrations:
        queries = (*self.queries, *self.selection_queries)
        # Room for the longest label: controls show other labels, and must not decide which demonstrations fit.
        return self.encoder.truncate_to_context(demonstrations, queries, self.context, any_label=True)

    def encode(self, demonstrations: Demonstrations, rest: Demonstrations | None = None) -> "DemonstrationSet":
        """Encode demonstrations, for instance those of a seed in another order.

        Args:
            demonstrations: The examples in the prompt.
            rest: Further labelled examples, which are not in the prompt.
        """
        encoded = self.encoder.demonstrations(demonstrations)
        if rest is None or not rest.examples:
            return DemonstrationSet(demonstrations, encoded, demonstrations, encoded)
        more = self.encoder.demonstrations(rest)
        encoded_labelled = replace(
            encoded,
            sequences=(*encoded.sequences, *more.sequences),
            n_answer_tokens=(*encoded.n_answer_tokens, *more.n_answer_tokens),
        )
        return DemonstrationSet(demonstrations, encoded, demonstrations.followed_by(rest), encoded_labelled)


@dataclass(frozen=True)
class DemonstrationSet:
    """One seed's demonstrations, as rows and as tokens."""

    demonstrations: Demonstrations
    """The examples in the prompt."""
    encoded: EncodedDemonstrations
    labelled: Demonstrations
    """All labelled examples, those in the prompt first."""
    encoded_labelled: EncodedDemonstrations
    """The same as tokens; its prefix is that of `encoded`."""


_SEPARATOR_TOKENS = 4
"""Least room for the separator after each demonstration."""
_UNEVEN_TOKENS = 2
"""A note is added where the lengths of label words differ by at least this many tokens."""
_MOST_LISTED = 6
"""Queries that an error lists by name."""


def _with_notes(config: StudyConfig, task: Task, encoder: Encoder, context: int) -> Task:
    """The task with notes on how it suits the model and settings, its texts truncated where the settings say so."""
    notes = []
    if config.truncate:
        # Leave room for the query and one demonstration of each class; further demonstrations may not fit.
        n_texts = 1 + min(config.k, task.n_labels)
        room = (context - len(encoder.opening)) // n_texts - max(_SEPARATOR_TOKENS, len(encoder.separator))
        task, n_cut = truncate_examples(task, encoder, room)
        if n_cut:
            total = sum(map(len, task.splits.values()))
            notes.append(f"{n_cut} of {total} texts were cut so that none has more than {room} tokens.")
    if 0 < config.k < task.n_labels and not task.is_multiple_choice:
        notes.append(
            f"k is {config.k}, but there are {task.n_labels} classes, so some have no demonstration in the prompt. Set "
            f"k to {task.n_labels} or more."
        )
    if task.label_words is not None:
        example = task.split(task.report_split)[0]
        lengths = dict(zip(task.label_words, map(len, encoder.query(example).answers), strict=True))
        if max(lengths.values()) - min(lengths.values()) >= _UNEVEN_TOKENS:
            least, most = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
            notes.append(
                f"Label words have different numbers of tokens, from {lengths[least]} ({least!r}) to {lengths[most]} "
                f"({most!r}); each is scored by the mean over its tokens, which favours words whose later tokens "
                "follow from the first. Prefer label words of equal length."
            )
    return replace(task, notes=(*task.notes, *notes))


def _require_room(
    queries_of: Mapping[str, tuple[Sequence[Example], Sequence[Query]]], context: int, n_opening: int
) -> None:
    """Raise a ContextError that lists the queries which alone are longer than the context."""
    room = context - n_opening
    too_long = [
        (split, example, n_tokens(query))
        for split, (examples, queries) in queries_of.items()
        for example, query in zip(examples, queries, strict=True)
        if n_tokens(query) > room
    ]
    if not too_long:
        return
    places = ", ".join(f"{split} {example.place} ({n} tokens)" for split, example, n in too_long[:_MOST_LISTED])
    more = f" and {len(too_long) - _MOST_LISTED} more" if len(too_long) > _MOST_LISTED else ""
    what = "1 query does" if len(too_long) == 1 else f"{len(too_long)} queries do"
    raise ContextError(
        f"{what} not fit the context of {context} tokens, {n_opening} of which are its opening: "
        f"{places}{more}. Raise --context, shorten the texts or cut them with --truncate, or use a model with a longer "
        "context."
    )


def encoder_for(config: StudyConfig, lm: LanguageModel, task: Task) -> Encoder:
    """An encoder of a task's texts for a model, according to a study's settings."""
    return Encoder(lm, task, config.opening, chat=config.chat, system=config.system)


def sample(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """At most `limit` examples, drawn at random with a fixed seed, since data sets are often sorted by label."""
    if limit is None or limit >= len(examples):
        return tuple(examples)
    chosen = sorted(random.Random(0).sample(range(len(examples)), limit))
    return tuple(examples[i] for i in chosen)


def digest(experiment: Experiment[StudyConfig], drawn: Iterable[DemonstrationSet], more: Iterable[str] = ()) -> str:
    """A digest of a run's inputs (texts, labels and weights), since files may change while their names stay the same.

    Args:
        experiment: Model, task and queries.
        drawn: The demonstrations of all seeds.
        more: Contents of other files that the run reads.
    """
    hashed = hashlib.sha256()
    hashed.update(repr((experiment.queries, [example.label for example in experiment.examples])).encode())
    hashed.update(repr((experiment.selection_queries, [example.label for example in experiment.selection])).encode())
    reads_all = experiment.config.label_budget is None
    for example in experiment.task.split("train"):
        # Controls draw other demonstrations from the train split, and folds their texts.
        label = example.label if reads_all else None
        hashed.update(repr((example.row, label, sorted(example.fields.items()))).encode())
    for demonstration_set in drawn:
        labelled, prefix = demonstration_set.labelled, demonstration_set.encoded.prefix
        hashed.update(repr((labelled.rows, labelled.labels, prefix)).encode())
    hashed.update(experiment.weights_digest.encode())
    for text in more:
        hashed.update(hashlib.sha256(text.encode()).digest())
    return hashed.hexdigest()[:16]


def weights_digest(lm: LanguageModel) -> str:
    """A digest of all bytes of a model's weights."""
    return digest_of_weights((name, weight_of(lm.model, name)) for name, _ in named_weights(lm.model))


def query_cost(experiment: Experiment[StudyConfig], passes: Sequence[QueryPass]) -> dict[str, float]:
    """Tokens and FLOPs to answer one query: with the whole prefix read again, and with it cached (`kept_`).

    Args:
        experiment: The setup, whose queries are averaged over.
        passes: The model's passes over one query; none for a learner that does not read the model.
    """
    own = sum(len(query.prompt) for query in experiment.queries) / len(experiment.queries)
    forward = experiment.lm.shape.forward
    new = [(each.prefix - each.kept + own, each.kept) for each in passes]
    return {
        "tokens": float(sum(each.prefix + own for each in passes)),
        "flops": float(sum(forward(round(each.prefix + own)) for each in passes)),
        "kept_tokens": float(sum(n for n, _ in new)),
        "kept_flops": float(sum(forward(round(n), prefix=round(kept)) for n, kept in new)),
    }
