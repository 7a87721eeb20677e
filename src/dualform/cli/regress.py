"""`dualform regress`: the laboratory from the command line."""

from pathlib import Path
from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.running import RunOptions, run_study
from dualform.studies.laboratory.config import LAB_NAMES, RegressionConfig, regression_config


@study_command(RegressionConfig, folder="regress-STUDY")
def regress(settings: dict[str, Any], run: RunOptions) -> None:
    """The laboratory: is attention gradient descent where theory says so, and where does it stop being so?

    Examples:
      dualform regress

      dualform regress --study constructed

      dualform regress --study trained --seeds 1..5 --out runs/trained

      dualform regress --study phases,layers --seeds 1..3 --steps 0.1
    """
    from dualform.studies.laboratory.run import run_laboratory

    config = regression_config(**settings)
    run_study(
        config,
        lambda cells, progress: run_laboratory(config, cells=cells, progress=progress),
        run,
        default=Path("runs") / "-".join(("regress", *(() if config.studies == LAB_NAMES else config.studies))),
        kept="trainings",
        show=_print_claims,
    )


def _print_claims(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.laboratory.table import claim_tables
    from dualform.studies.laboratory.words import laboratory_verdict

    print_study(laboratory_verdict(result), claim_tables(result), result.warnings)
