"""`dualform stability`: how much depends on which demonstrations were drawn, and in which order."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder
from dualform.cli.running import RunOptions, run_study
from dualform.studies.stability.config import StabilityConfig, stability_config


@study_command(StabilityConfig, folder="MODELS-TASK-stability")
def stability(settings: dict[str, Any], run: RunOptions) -> None:
    """Measure how ICL and FT vary over demonstration sets, orders and labels, and when they collapse.

    Examples:
      dualform stability smollm2-135m --task reviews

      dualform stability smollm2-135m gemma3-270m --task sst2 --data-dir data --seeds 1..20 --orders 10

      dualform stability ./checkpoint --task tickets.csv --text body --label topic --seeds 1..8 --ft-seeds 4
    """
    config = stability_config(**settings)
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    task = config.load_local_task()

    run_study(
        "stability",
        config,
        run,
        task=task,
        default=default_folder(config.models, config.task, "stability"),
        kept="sets",
    )
