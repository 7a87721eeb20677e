"""The HTML page of a result of any study."""

from altair.utils.schemapi import debug_mode

from dualform.attention_record import AttentionRecord
from dualform.report.page import study_page
from dualform.report.section import Section
from dualform.report.table import Table
from dualform.result import Result
from dualform.studies.study import STUDIES, Study, study_of_result


def render_page(result: Result, attention: AttentionRecord | None = None) -> str:
    """The report as one HTML document.

    Args:
        result: Any result; sections without data are left out.
        attention: Attention of a comparison's learners, for the explorer.

    Returns:
        The whole page, to be written as UTF-8: about 1 MB, because it includes the chart library and works offline.
    """
    # For a study that is not installed, the comparison's page shows accuracies, costs and settings.
    study = study_of_result(result) or STUDIES["compare"]
    if study.view.page is None:
        return _plain_page(study, result)
    # Otherwise altair checks each part of a chart against the schema of all charts as it is made; the tests do that.
    with debug_mode(False):
        return study.view.page(result) if attention is None else study.view.page(result, attention)


def _plain_page(study: Study, result: Result) -> str:
    """A page of a study's sentences and tables."""
    tables = [table for table in study.view.tables(result) if isinstance(table, Table)]
    return study_page(
        result,
        title=study.noun,
        sentences=list(study.view.headlines(result)),
        nothing="This result has no headline.",
        first=[Section("tables", "In numbers", tables=tables, detail=False)],
    )
