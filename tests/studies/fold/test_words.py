"""The sentences on a written fold, cautions first."""

from typing import Any

import pytest

from dualform.report.numerals import MISSING
from dualform.result import Accuracy, Cost, Estimate, FoldReport, Predictions, PromptingComparison, Result, WrittenFold
from dualform.studies.against_words import recovered_share
from dualform.studies.comparison.table import against_table
from dualform.studies.fold.words import findings
from tests.studies.comparison.test_table import printed


def estimate(mean: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(mean=mean, ci95=(low, high), n=40)


def folded(
    agreement: float = 0.93,
    zero_shot: float = 0.7,
    right: tuple[float, float] = (0.5, 0.8),
    share: float | None = 0.9,
    majority: float = 0.6,
    break_even: float | None = 142.3,
) -> Result:
    """A fold's result; `right` are the accuracies of zero-shot and ICL."""

    def accuracy(mean: float) -> Accuracy:
        return Accuracy(mean=mean, ci95=(mean - 0.02, mean + 0.02), n=40, per_seed={"1": mean})

    def against(same: float, recovered: float | None, queries: float | None) -> PromptingComparison:
        return PromptingComparison(
            agreement=estimate(same), expected=0.904, recovered=estimate(recovered), break_even=queries,
            break_even_kept=None,
        )  # fmt: skip

    def cost(flops: float) -> Cost:
        return Cost(
            adapt_seconds=1.0, query_seconds=1.0, tokens=9.0, flops=flops, adapt_flops=flops, kept_flops=flops
        )  # fmt: skip

    return Result(
        dualform="0",
        study="comparison",
        config={"model": "base", "rank": 4},
        environment={},
        accuracy={"zsl": accuracy(right[0]), "icl": accuracy(right[1]), "fold": accuracy(0.77)},
        predictions={"icl": Predictions(majority_share=majority, majority_label="good", entropy=0.1, counts={})},
        cost={"zsl": cost(1.0), "icl": cost(3.0), "fold": cost(1.0)},
        against_icl={"zsl": against(zero_shot, 0.0, 0.0), "fold": against(agreement, share, break_even)},
        fold=FoldReport(
            method="ridge", texts=9, source="train", plain_tokens=0, plain_source="none", strength=None, explained=[],
            similarity={}, written=WrittenFold(form="checkpoint", kept=None, perplexity=None, difference=None),
        ),
    )  # fmt: skip


def test_a_good_fold_is_compared_with_chance_and_zero_shot() -> None:
    first, *rest = findings(folded())
    assert first.startswith("Folded ")
    for part in ("93.0 %", "by chance 90.4 %", "without the fold 70.0 %"):
        assert part in first
    assert "It keeps 90.0 % of the prompt's gain" in " ".join(rest)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"zero_shot": 0.95}, "already agrees with the prompted one on 95.0 %"),
        ({"zero_shot": 0.93}, "already agrees with the prompted one on 93.0 %"),
        ({"right": (0.8, 0.8)}, "The prompt gained nothing: 80.0 %"),
        ({"right": (0.8, 0.7)}, "The prompt gained nothing: 70.0 %"),
        ({"right": (0.8, 0.81)}, "The prompt's gain is not significant"),
        ({"majority": 0.97}, "the same answer, “good”, to 97.0 %"),
    ],
)
def test_cautions_come_first(changes: dict[str, Any], words: str) -> None:
    assert words in findings(folded(**changes))[0]


@pytest.mark.parametrize(
    ("share", "displayed"),
    [(-0.2, "undefined"), (0.0, "0.0 %"), (0.5, "50.0 %"), (1.5, "150.0 %"), (1.51, "undefined"), (None, MISSING)],
)
def test_a_share_outside_of_0_to_150_per_cent_is_undefined(share: float | None, displayed: str) -> None:
    result = folded(share=share)
    assert recovered_share(result.against_icl["fold"]) == displayed
    text = " ".join(findings(result))
    if share is None or displayed == "undefined":
        assert "gain over zero-shot is undefined" in text
    else:
        assert f"It keeps {displayed} of the prompt's gain over zero-shot" in text
        assert displayed in printed(against_table(result))
    if displayed == "undefined":
        assert "undefined" in printed(against_table(result))


@pytest.mark.parametrize(
    ("queries", "words"),
    [(142.3, "after 143 queries"), (1999.1, "after 2,000 queries"), (0.0, "from the first query"), (None, "never")],
)
def test_text_and_table_show_the_same_break_even(queries: float | None, words: str) -> None:
    result = folded(break_even=queries)
    assert f"read with every query {words}" in " ".join(findings(result))
    displayed = words.removeprefix("after ").removesuffix(" queries").replace("from the first query", "0")
    assert displayed in printed(against_table(result))


def test_a_comparison_has_no_such_verdict() -> None:
    result = folded()
    assert result.fold is not None
    plain = result.model_copy(update={"fold": result.fold.model_copy(update={"written": None})})
    assert findings(plain) == []
