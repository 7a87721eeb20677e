"""`dualform selection`: how much choosing seed, order or learning rate raises a learner's accuracy."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.selection.config import SelectionConfig, selection_config


@study_command(SelectionConfig, folder="MODEL-TASK-selection")
def selection(settings: dict[str, Any], run: RunOptions) -> None:
    """Measure how much choosing seed, order or rate raises accuracy, and whether similarity depends on the choice.

    Examples:
      dualform selection smollm2-135m reviews

      dualform selection smollm2-135m sst2 --data-dir data --seeds 1..7 --rates 1e-3,3e-3,1e-2,3e-2

      dualform selection ./checkpoint tickets.csv --text body --label topic --seeds 1..4 --limit 100
    """
    config = selection_config(**settings)
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    task = config.load_local_task()

    run_study(
        "selection",
        config,
        run,
        task=task,
        default=default_folder((config.model,), config.task, "selection"),
        kept="seeds",
    )
