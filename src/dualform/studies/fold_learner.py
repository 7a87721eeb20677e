"""Folding as a learner among others: the prompt's effect written into the weights, by the method of the settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualform.learners.adapted import Adapted
from dualform.learners.base import AdaptationContext, Learner, Setup
from dualform.models.cost.work import Work, WorkPart, read
from dualform.models.editing.blockwise import require_editable_outputs, require_separable
from dualform.models.editing.edit import key_value_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Probe, Query
from dualform.models.structure.blocks import find_blocks
from dualform.models.structure.mlp_inputs import find_mlp_inputs
from dualform.result import FoldReport, Similarity
from dualform.studies.fold_settings import FoldMethod
from dualform.studies.fold_work import check_forwards, fold_bytes, fold_parts, fold_prefix, reads_twice
from dualform.studies.folds import check_fold, make_fold


class FoldingLearner(Learner):
    """The fold that the settings describe (`FoldSettings`), by whichever method."""

    name = "fold"
    needs_demonstrations = True
    changes_weights = True
    compared_inside = True

    def adapt(self, context: AdaptationContext) -> Adapted:
        """Fold the demonstrations, and record which texts that took."""
        made = make_fold(context.setup, context.drawn, context.config.fold, context.report)
        context.record(made.about())
        return made.adapted

    def check(self, lm: LanguageModel, config: Any) -> None:
        """See `check_fold_method`."""
        check_fold_method(lm, config.fold.method)

    def prepare(self, setup: Setup) -> tuple[str, ...]:
        """See `check_fold`."""
        return check_fold(setup, setup.config.fold)

    def report(
        self, config: Any, facts: Sequence[Mapping[str, Any]], similarity: Mapping[str, Mapping[str, Similarity]]
    ) -> dict[str, Any]:
        """How the prompt was folded: `Result.fold`."""
        layers = zip(*(one["explained"] for one in facts), strict=True)
        report = FoldReport(
            method=config.fold.method,
            # Where the model had to write what the train split lacks, it had to for every seed.
            **{name: facts[0][name] for name in ("texts", "source", "plain_tokens", "plain_source")},
            strength=_mean([one["strength"] for one in facts]),
            explained=[_mean(values) for values in layers],
            similarity={other: dict(measures) for other, measures in similarity.items()},
        )
        return {"fold": report}

    def prefix_length(self, context: AdaptationContext) -> int:
        """Edited keys and values are those of the whole prompt; other methods leave the opening alone."""
        return fold_prefix(context.config.fold, context.setup, context.drawn)

    def work(self, context: AdaptationContext) -> Work:
        """Every part of `parts`."""
        return sum((part.work for part in self.parts(context)), Work())

    def parts(self, context: AdaptationContext) -> list[WorkPart]:
        """See `fold_work`."""
        return fold_parts(context.setup, context.drawn, context.config.fold)

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """A change that depends on the query is made from it behind the demonstrations, so it is read twice."""
        work = super().reading(context, queries, probe)
        if reads_twice(context.config.fold):
            work += read(queries, len(context.encoded.prefix), probe)
        return work

    def extra_bytes(self, setup: Setup) -> int:
        """Hidden states and equations."""
        return fold_bytes(setup, setup.config.fold)

    def check_forwards(self, config: Any) -> int:
        """Forwards that find blocks and MLP input projections."""
        return check_forwards(config.fold.method)


FOLDING = FoldingLearner()


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def check_fold_method(lm: LanguageModel, method: FoldMethod) -> None:
    """Check that a prompt can be folded into this model by a method.

    Raises:
        ModelError: It cannot.
    """
    if method == "ridge":
        require_editable_outputs(lm)
        require_separable(lm, find_blocks(lm.model, lm.anatomy))
    elif method == "thought-vector":
        require_editable_outputs(lm)
    elif method in ("thought-matrix", "rank-one"):
        require_editable_outputs(lm)
        find_mlp_inputs(lm.model, lm.anatomy)
    elif method == "task-vector":
        find_blocks(lm.model, lm.anatomy)
    elif method == "mezo":
        key_value_rows(lm.model, lm.anatomy)
    elif method == "kv-momentum":
        lm.anatomy.require_layers("KV momentum")
