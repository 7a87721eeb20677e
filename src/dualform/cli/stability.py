"""`dualform stability`: how much accuracy depends on the choice and order of the demonstrations."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.stability.config import StabilityConfig, stability_config


@study_command(StabilityConfig, folder="MODELS-TASK-stability")
def stability(settings: dict[str, Any], run: RunOptions) -> None:
    """Measure how much ICL and FT vary over demonstration sets, orders and labels, and when they collapse.

    Examples:
      dualform stability smollm2-135m --task reviews

      dualform stability smollm2-135m gemma3-270m --task sst2 --data-dir data --seeds 1..20 --orders 10

      dualform stability ./checkpoint --task tickets.csv --text body --label topic --seeds 1..8 --ft-seeds 4
    """
    config = stability_config(**settings)
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    task = config.load_local_task()

    run_study(
        "stability",
        config,
        run,
        task=task,
        default=default_folder(config.models, config.task, "stability"),
        kept="sets",
    )
