"""`dualform compare`: the main job."""

from typing import Any

from dualform.cli.generated import study_command
from dualform.cli.options import default_folder, refuse_unread
from dualform.cli.running import RunOptions, run_study
from dualform.studies.comparison.config import ComparisonConfig, comparison_config


@study_command(ComparisonConfig, folder="MODEL-TASK")
def compare(settings: dict[str, Any], run: RunOptions) -> None:
    """Adapt one model by prompt and by finetuning on the same demonstrations, look inside, compare.

    Examples:
      dualform compare smollm2-135m reviews

      dualform compare smollm2-135m sst2 --data-dir data --seeds 1..5 --limit 500

      dualform compare gpt2 tickets.csv --text body --label topic -k 16

      dualform compare ./checkpoint mytask.yaml --preset dai2023 --json > result.json

      dualform compare smollm2-135m reviews --controls all
    """
    refuse_unread(ComparisonConfig, settings)
    config = comparison_config(**settings)
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    task = config.load_local_task()
    from dualform.studies.comparison.run import compare as compare_learners
    from dualform.studies.comparison.summary import examples_table

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any, Any]:
        comparison = compare_learners(config, task=task, cells=cells, progress=progress)
        return comparison.result, examples_table(comparison.asked, comparison.outcomes), comparison.attention

    preset = [] if config.preset == "default" else [config.preset]
    run_study(
        config,
        carried_out,
        run,
        default=default_folder((config.model,), config.task, *preset),
        kept="seeds",
        show=_print_tables,
    )


def _print_tables(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.comparison.table import (
        accuracy_table,
        against_table,
        by_label_table,
        cost_table,
        similarity_table,
    )
    from dualform.studies.comparison.words import verdict

    tables = (
        accuracy_table(result),
        by_label_table(result),
        against_table(result),
        similarity_table(result),
        cost_table(result),
    )
    print_study(verdict(result), tables, result.warnings)
