"""The work of folding one prompt into one model."""

from dualform.models.cost.work import Forward, Work, WorkPart, encode, read
from dualform.models.export.card import EXAMPLE
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.fold.config import FoldConfig
from dualform.studies.fold_work import fold_parts
from dualform.studies.folds import perplexity_passages
from dualform.studies.work import read_changed
from dualform.tasks.task import Example

VERIFIED_QUERIES = 16
"""Queries whose answers `--verify` compares."""


def folding_parts(experiment: Experiment[FoldConfig], drawn: DemonstrationSet) -> list[WorkPart]:
    """The work of the fold itself."""
    return fold_parts(experiment, drawn, experiment.config.fold)


def reading_work(experiment: Experiment[FoldConfig], prefix: int) -> Work:
    """Reading the reported queries after a prefix."""
    return read_changed(experiment.queries, prefix)


def work_parts(experiment: Experiment[FoldConfig], drawn: DemonstrationSet) -> list[WorkPart]:
    """All work of `dualform fold`."""
    config = experiment.config
    opening, prefix = len(experiment.encoder.opening), len(drawn.encoded.prefix)
    parts = folding_parts(experiment, drawn)
    if config.form == "lora":
        parts.append(WorkPart("truncating to rank", encode(opening)))
    parts += [WorkPart("zsl", encode(opening)), WorkPart("icl", encode(prefix))]
    reading = reading_work(experiment, opening) * 2 + reading_work(experiment, prefix)
    if experiment.task.label_words is not None:
        # The example of the model card.
        query = experiment.encoder.query(Example(dict.fromkeys(experiment.task.template.fields, EXAMPLE), 0, 0))
        reading += read([query], opening)
    parts.append(WorkPart("reading queries", reading))
    if config.perplexity is not None:
        passages = perplexity_passages(experiment, config.perplexity, config.perplexity_texts)
        once = Work.of(*(Forward((opening + len(ids),), 0, len(ids)) for ids in passages))
        parts.append(WorkPart("perplexity", once * 2))
    if config.verify:
        lengths = [opening + len(query.prompt) for query in experiment.queries[:VERIFIED_QUERIES]]
        # Once here, and once in a fresh process.
        parts.append(WorkPart("verifying", Work.of(*(Forward((n,)) for n in lengths)) * 2))
    return parts
