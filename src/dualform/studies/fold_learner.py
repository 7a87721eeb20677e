"""The learner `fold`, which writes the prompt's effect into the weights."""

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
    """The fold that the settings describe (`FoldSettings`), by any of its methods."""

    name = "fold"
    needs_demonstrations = True
    changes_weights = True
    compared_inside = True
    trains_on = "demonstrations"

    def adapt(self, context: AdaptationContext) -> Adapted:
        """Fold the demonstrations, and record the facts for `report`."""
        record = make_fold(context.setup, context.drawn, context.config.fold, context.report)
        context.record(record.about())
        return record.adapted

    def check(self, lm: LanguageModel, config: Any) -> None:
        """See `check_fold_method`."""
        check_fold_method(lm, config.fold.method)

    def prepare(self, setup: Setup) -> tuple[str, ...]:
        """See `check_fold`."""
        return check_fold(setup, setup.config.fold)

    def report(
        self, config: Any, facts: Sequence[Mapping[str, Any]], similarity: Mapping[str, Mapping[str, Similarity]]
    ) -> dict[str, Any]:
        """The field `Result.fold`: how the prompt was folded."""
        layers = zip(*(of_seed["explained"] for of_seed in facts), strict=True)
        report = FoldReport(
            method=config.fold.method,
            # These are the same for every seed.
            **{name: facts[0][name] for name in ("texts", "source", "plain_tokens", "plain_source")},
            strength=_mean([of_seed["strength"] for of_seed in facts]),
            explained=[_mean(values) for values in layers],
            similarity={other: dict(measures) for other, measures in similarity.items()},
        )
        return {"fold": report}

    def prefix_length(self, context: AdaptationContext) -> int:
        """See `fold_prefix`."""
        return fold_prefix(context.config.fold, context.setup, context.drawn)

    def work(self, context: AdaptationContext) -> Work:
        """The sum of `parts`."""
        return sum((part.work for part in self.parts(context)), Work())

    def parts(self, context: AdaptationContext) -> list[WorkPart]:
        """See `fold_parts`."""
        return fold_parts(context.setup, context.drawn, context.config.fold)

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """Reading queries; methods whose change depends on the query read it twice, also after the demonstrations."""
        work = super().reading(context, queries, probe)
        if reads_twice(context.config.fold):
            work += read(queries, len(context.encoded.prefix), probe)
        return work

    def extra_bytes(self, setup: Setup) -> int:
        """See `fold_bytes`."""
        return fold_bytes(setup, setup.config.fold)

    def check_forwards(self, config: Any) -> int:
        """See `fold_work.check_forwards`."""
        return check_forwards(config.fold.method)


FOLDING = FoldingLearner()


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def check_fold_method(lm: LanguageModel, method: FoldMethod) -> None:
    """Check that a method can fold a prompt into this model.

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
