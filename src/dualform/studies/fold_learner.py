"""Folding as a learner among others: the prompt's effect written into the weights, by the method of the settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualform.learners.adapted import Adapted
from dualform.learners.base import Context, Learner, Setup
from dualform.models.cost.work import Cost, Part
from dualform.models.editing.blockwise import require_editable_outputs, require_separable
from dualform.models.editing.edit import key_value_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Probe, Query
from dualform.models.structure.blocks import find_blocks
from dualform.models.structure.mlp_inputs import find_readers
from dualform.result import FoldReport, Similarity
from dualform.studies.fold_settings import FoldMethod
from dualform.studies.folds import check_fold, make_fold
from dualform.studies.plan_folds import READERS, RIDGE_CHECKS, fold_bytes, fold_parts, fold_prefix, reads_twice


class FoldingLearner(Learner):
    """The fold that the settings describe (`FoldSettings`), by whichever method."""

    name = "fold"
    needs_demonstrations = True
    changes_weights = True
    compared_inside = True

    def adapt(self, context: Context) -> Adapted:
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

    def prefix_length(self, context: Context) -> int:
        """Edited keys and values are those of the whole prompt; other methods leave the opening alone."""
        return fold_prefix(context.config.fold, context.setup, context.drawn)

    def work(self, context: Context) -> float:
        """Texts behind the demonstrations and alone, as long as queries are, and plain text."""
        settings, queries = context.config.fold, context.setup.queries
        query = sum(query.width() for query in queries) / len(queries)
        plain = 0 if settings.plain == "none" else settings.plain_texts * settings.plain_length
        return len(context.encoded.prefix) + 2 * settings.texts * query + plain

    def plan(self, prices: Any, context: Context) -> list[Part]:
        """See `plan_folds`."""
        return fold_parts(prices, context.setup, context.drawn, context.config.fold)

    def plan_reading(self, prices: Any, context: Context, queries: Sequence[Query], probe: Probe) -> Cost:
        """A change that depends on the query is made from it behind the demonstrations, so it is read twice."""
        cost = prices.read(queries, self.prefix_length(context), probe)
        if reads_twice(context.config.fold):
            cost += prices.read(queries, len(context.encoded.prefix), probe)
        return cost

    def plan_memory(self, prices: Any, setup: Setup) -> int:
        """Hidden states and equations."""
        return fold_bytes(prices, setup, setup.config.fold)

    def plan_checks(self, config: Any) -> int:
        """Forwards that find blocks and MLP input projections."""
        checks = {"ridge": RIDGE_CHECKS - 1, "thought-matrix": READERS, "rank-one": READERS, "task-vector": 1}
        return checks.get(config.fold.method, 0)


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
        find_readers(lm.model, lm.anatomy)
    elif method == "task-vector":
        find_blocks(lm.model, lm.anatomy)
    elif method == "mezo":
        key_value_rows(lm.model, lm.anatomy)
    elif method == "kv-momentum":
        lm.anatomy.require_layers("KV momentum")
