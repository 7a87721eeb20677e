"""`dualform folding`: what folding depends on, and what it does to everything else."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.folding.config import FoldingConfig, folding_config


@study_command(FoldingConfig, folder="MODEL-TASK-folding")
def folding(settings: dict[str, Any], run: RunOptions) -> None:
    """Fold one prompt in many ways and say what decides how well it goes.

    Examples:
      dualform folding smollm2-135m reviews --axes method

      dualform folding smollm2-135m sst2 --data-dir data --axes k,texts --seeds 1..5

      dualform folding smollm2-135m reviews --transfer tweets --compose subj --perplexity prose.txt
    """
    config = folding_config(**settings)
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    task = config.load_local_task()

    run_study(
        "folding",
        config,
        run,
        task=task,
        default=default_folder((config.model,), config.task, "folding"),
        kept="folds",
    )
