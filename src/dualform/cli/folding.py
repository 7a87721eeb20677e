"""`dualform folding`: which settings folding depends on, and its effects on other tasks."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.folding.config import FoldingConfig, folding_config


@study_command(FoldingConfig, folder="MODEL-TASK-folding")
def folding(settings: dict[str, Any], run: RunOptions) -> None:
    """Fold a prompt with different settings, and report which of them matter.

    Examples:
      dualform folding smollm2-135m reviews --axes method

      dualform folding smollm2-135m sst2 --data-dir data --axes k,texts --seeds 1..5

      dualform folding smollm2-135m reviews --transfer tweets --compose subj --perplexity prose.txt
    """
    config = folding_config(**settings)
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    task = config.load_local_task()

    run_study(
        "folding",
        config,
        run,
        task=task,
        default=default_folder((config.model,), config.task, "folding"),
        kept="folds",
    )
