"""The page of any study's result."""

from dualform.attention_record import AttentionRecord
from dualform.result import Result
from dualform.studies.study import study_of_result


def render_page(result: Result, attention: AttentionRecord | None = None) -> str:
    """The report as one HTML document, ready to be written as UTF-8.

    Args:
        result: Any result; sections without data are left out.
        attention: Where a comparison's learners looked, for the explorer.

    Returns:
        The whole page, charts' libraries included: about 1 MB, readable offline and printable.

    Raises:
        ConfigError: The result is of a study that is not installed.
    """
    page = study_of_result(result).view.page
    return page(result) if attention is None else page(result, attention)
