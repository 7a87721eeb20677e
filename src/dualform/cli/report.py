"""`dualform report`: writes the report of a finished run or of a sweep again."""

from pathlib import Path
from typing import Annotated

import typer

from dualform.cli.guard import guarded, say


@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a finished run or of a sweep")],
    chart: Annotated[
        Path | None,
        typer.Option(help="Also save the accuracy chart: a .svg, .pdf, .png or .html file", show_default=False),
    ] = None,
) -> None:
    """Write report.html again from result.json, or for a sweep from sweep.json.

    Examples:
      dualform report runs/smollm2-135m-reviews

      dualform report runs/regress

      dualform report runs/smollm2-135m-reviews --chart accuracy.pdf

      dualform report runs/sweep-six-tasks
    """
    from dualform.errors import ConfigError
    from dualform.files import writable_dir
    from dualform.report.charts.saving import save_chart
    from dualform.runs.store import read_result, write_report
    from dualform.runs.sweep_folder import SWEEP_FILE, holds_sweep, read_sweep, write_sweep_report
    from dualform.studies.comparison.charts import accuracy_chart

    is_sweep = holds_sweep(folder)
    if not is_sweep and not (folder / "result.json").exists():
        raise ConfigError(
            f"{folder} has no result.json: give the folder of a finished run, or of a sweep with its {SWEEP_FILE} "
            "(see --out)."
        )
    say(f"Report: {write_sweep_report(folder) if is_sweep else write_report(folder)}")
    if chart is not None:
        if is_sweep:
            from dualform.runs.sweep_charts import accuracy_by_task_chart

            drawn = accuracy_by_task_chart(read_sweep(folder))
        else:
            drawn = accuracy_chart(read_result(folder))
        if drawn is None:
            raise ConfigError(f"{folder} holds no accuracy, so there is nothing to draw.")
        writable_dir(chart.parent, "Choose another folder with --chart.")
        save_chart(drawn, chart)
        say(f"The chart: {chart}")
