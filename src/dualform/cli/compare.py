"""`dualform compare`: compares prompting, finetuning and folding."""

from typing import Any

from dualform.cli.generated import refuse_unread, study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.comparison.config import ComparisonConfig, comparison_config


@study_command(ComparisonConfig, folder="MODEL-TASK")
def compare(settings: dict[str, Any], run: RunOptions) -> None:
    """Adapt a model by prompting and by finetuning with the same demonstrations, and compare their effects inside it.

    Examples:
      dualform compare smollm2-135m reviews

      dualform compare smollm2-135m sst2 --data-dir data --seeds 1..5 --limit 500

      dualform compare gpt2 tickets.csv --text body --label topic -k 16

      dualform compare ./checkpoint mytask.yaml --preset dai2023 --json > result.json

      dualform compare smollm2-135m reviews --controls all
    """
    refuse_unread(ComparisonConfig, settings)
    config = comparison_config(**settings)
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    task = config.load_local_task()

    preset = [] if config.preset == "default" else [config.preset]
    run_study(
        "compare",
        config,
        run,
        task=task,
        default=default_folder((config.model,), config.task, *preset),
        kept="seeds",
    )
