"""What the seeds of a comparison share: model, task, queries, and how much work a seed is."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualform.models.encoding import EncodedDemonstrations, Encoder
from dualform.models.flops import forward_flops
from dualform.models.language_model import LanguageModel
from dualform.models.layout import Query
from dualform.studies.comparison_config import ComparisonConfig
from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.task import Example, Task

# A training step reads its tokens forwards, and works twice as much backwards.
_TRAINING = 3.0


@dataclass(frozen=True)
class Bench:
    """Everything that the seeds share."""

    config: ComparisonConfig
    lm: LanguageModel
    task: Task
    encoder: Encoder
    learners: tuple[str, ...]
    report_split: str
    selection_split: str
    examples: tuple[Example, ...]
    queries: tuple[Query, ...]
    selection: tuple[Example, ...]
    selection_queries: tuple[Query, ...]
    context: int
    notes: tuple[str, ...]

    @classmethod
    def of(cls, config: ComparisonConfig, lm: LanguageModel, task: Task) -> "Bench":
        """Choose splits and queries, tokenise them, and note what a reader must know about the choice."""
        encoder = Encoder(lm, task)
        notes = []
        report_split = task.report_split
        if config.preset == "dai2023" and task.paper_split is not None:
            report_split = task.paper_split
        selection_split = report_split if config.select_on == "report" else task.selection_split
        if selection_split == report_split and config.select_on == "validation":
            # The paper's split is this task's selection split; its other split is as good to select on.
            selection_split = task.report_split
        examples = _sample(task.split(report_split), config.limit)
        if config.select_on == "report":
            selection = examples
            notes.append(
                "Learning rates were chosen on the very queries that are reported, as the paper does: this flatters FT."
            )
        else:
            selection = _sample(task.split(selection_split), config.selection_limit)
        learners = tuple(config.learners)
        if task.is_multiple_choice and "probe" in learners:
            learners = tuple(name for name in learners if name != "probe")
            notes.append("The probe was left out: free-text choices have no classes to regress on.")
        limit = lm.max_positions
        return cls(
            config=config,
            lm=lm,
            task=task,
            encoder=encoder,
            learners=learners,
            report_split=report_split,
            selection_split=selection_split,
            examples=examples,
            queries=tuple(encoder.query(example) for example in examples),
            selection=selection,
            selection_queries=tuple(encoder.query(example) for example in selection),
            context=config.context if limit is None else min(config.context, limit),
            notes=tuple(notes),
        )

    def draw(self, seed: int) -> "Drawn":
        """The one selection that all learners of a seed get."""
        config = self.config
        drawn = draw_demonstrations(self.task, config.k, seed, balanced=config.balanced, label_rule=config.label_rule)
        kept = self.encoder.fit(drawn, (*self.queries, *self.selection_queries), self.context)
        return Drawn(kept, self.encoder.demonstrations(kept))


@dataclass(frozen=True)
class Drawn:
    """One seed's demonstrations, as every learner gets them."""

    demonstrations: Demonstrations
    encoded: EncodedDemonstrations


def _sample(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """At most `limit` examples, drawn with a fixed seed: data sets are often sorted by label."""
    if limit is None or limit >= len(examples):
        return tuple(examples)
    chosen = sorted(random.Random(0).sample(range(len(examples)), limit))
    return tuple(examples[i] for i in chosen)


def digest(bench: Bench, drawn: Iterable[Drawn]) -> str:
    """What tells one run's inputs from another's: a file or a checkpoint may change while its name stays.

    Args:
        bench: Model, task and queries.
        drawn: All seeds' demonstrations.

    Returns:
        A digest of texts, labels and the first weights of every parameter.
    """
    found = hashlib.sha256()
    found.update(repr((bench.queries, [example.label for example in bench.examples])).encode())
    found.update(repr((bench.selection_queries, [example.label for example in bench.selection])).encode())
    for one in drawn:
        found.update(repr((one.demonstrations.rows, one.demonstrations.labels, one.encoded.prefix)).encode())
    for name, parameter in bench.lm.model.named_parameters():
        # A checkpoint trained anew differs everywhere; reading all of a large one would take seconds.
        found.update(f"{name} {tuple(parameter.shape)} {parameter.detach().flatten()[:64].tolist()}".encode())
    return found.hexdigest()[:16]


def query_cost(bench: Bench, n_prefix: int) -> dict[str, float]:
    """Tokens and operations of one query that shares nothing with others."""
    tokens = n_prefix + sum(len(query.prompt) for query in bench.queries) / len(bench.queries)
    return {"tokens": tokens, "flops": forward_flops(bench.lm.model, bench.lm.anatomy, round(tokens))}


def work_of_seed(bench: Bench, encoded: EncodedDemonstrations, searching: bool) -> float:
    """Work of one seed, in tokens read; `searching` when its learning rates are still to be chosen."""
    searching = searching or bench.config.tune == "each"
    adapting = sum(work_of_adapting(bench, name, encoded, searching) for name in bench.learners)
    return adapting + sum(query.width() for query in bench.queries) * len(bench.learners)


def work_of_adapting(bench: Bench, name: str, encoded: EncodedDemonstrations, searching: bool) -> float:
    """Work of adapting one learner once, in tokens read; a search counts every rate."""
    tokens = len(encoded.prefix)
    if name in ("ft", "lora"):
        training = tokens * _TRAINING
        if not searching:
            return training
        rates = bench.config.rates if name == "ft" else bench.config.lora_rates
        return len(rates) * (training + sum(query.width() for query in bench.selection_queries))
    return float(tokens) if name in ("icl", "probe") else 0.0
