"""`dualform regress`: the laboratory from the command line."""

from pathlib import Path
from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.running import RunOptions, run_study
from dualform.studies.laboratory.config import LAB_NAMES, RegressionConfig, regression_config


@study_command(RegressionConfig, folder="regress-STUDY")
def regress(settings: dict[str, Any], run: RunOptions) -> None:
    """Run the laboratory: test where attention is gradient descent, as theory predicts, and where it is not.

    Examples:
      dualform regress

      dualform regress --study constructed

      dualform regress --study trained --seeds 1..5 --out runs/trained

      dualform regress --study phases,layers --seeds 1..3 --steps 0.1
    """
    config = regression_config(**settings)
    run_study(
        "regress",
        config,
        run,
        default=Path("runs") / "-".join(("regress", *(() if config.studies == LAB_NAMES else config.studies))),
        kept="trainings",
    )
