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
    from dualform.studies.folding.run import folding as run_folding
    from dualform.studies.folding.summary import folding_table

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any]:
        study = run_folding(config, task=task, cells=cells, progress=progress)
        return study.result, folding_table(study.asked, study.base, study.seeds)

    run_study(
        config,
        carried_out,
        run,
        default=default_folder((config.model,), config.task, "folding"),
        kept="folds",
        show=_print_tables,
    )


def _print_tables(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.folding.table import folding_tables
    from dualform.studies.folding.words import folding_verdict

    print_study(folding_verdict(result), folding_tables(result), result.warnings)
