"""`dualform report`: the page of a finished run, made again."""

from pathlib import Path
from typing import Annotated

import typer

from dualform.cli.guard import guarded, say


@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run")],
    chart: Annotated[
        Path | None,
        typer.Option(help="Also save the accuracy chart: a .svg, .pdf, .png or .html file", show_default=False),
    ] = None,
) -> None:
    """Rebuild report.html from result.json.

    Examples:
      dualform report runs/smollm2-135m-reviews

      dualform report runs/regress

      dualform report runs/smollm2-135m-reviews --chart accuracy.pdf
    """
    from dualform.errors import ConfigError
    from dualform.files import writable_dir
    from dualform.report.charts import accuracy_chart, save_chart
    from dualform.runs.store import read_result, write_report

    say(f"The page: {write_report(folder)}")
    if chart is not None:
        drawn = accuracy_chart(read_result(folder))
        if drawn is None:
            raise ConfigError(f"{folder} holds no accuracy, so there is nothing to draw.")
        writable_dir(chart.parent, "Choose another place with --chart.")
        save_chart(drawn, chart)
        say(f"The chart: {chart}")
