"""The page of any study's result."""

from dualform.attention_record import AttentionRecord
from dualform.result import Result
from dualform.studies.comparison.page import render_comparison
from dualform.studies.folding.page import render_folding
from dualform.studies.laboratory.page import render_regression
from dualform.studies.momentum.page import render_momentum
from dualform.studies.selection.page import render_selection
from dualform.studies.stability.page import render_stability


def render_page(result: Result, attention: AttentionRecord | None = None) -> str:
    """The report as one HTML document, ready to be written as UTF-8.

    Args:
        result: Any result; sections without data are left out.
        attention: Where a comparison's learners looked, for the explorer.

    Returns:
        The whole page, charts' libraries included: about 1 MB, readable offline and printable.
    """
    if result.study == "stability":
        return render_stability(result)
    if result.study == "selection":
        return render_selection(result)
    if result.study == "folding":
        return render_folding(result)
    if result.study == "momentum":
        return render_momentum(result)
    if result.study == "regression":
        return render_regression(result)
    return render_comparison(result, attention)
