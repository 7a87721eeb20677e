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
    from dualform.studies.stability.run import stability as run_stability
    from dualform.studies.stability.summary import runs_table

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any]:
        study = run_stability(config, task=task, cells=cells, progress=progress)
        return study.result, runs_table(study.asked, study.models)

    run_study(
        config,
        carried_out,
        run,
        default=default_folder(config.models, config.task, "stability"),
        kept="sets",
        show=_print_tables,
    )


def _print_tables(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.stability.table import stability_tables
    from dualform.studies.stability.words import stability_answers

    answers = stability_answers(result)
    # The rest stands on the page, each beside its chart; the tables hold its numbers.
    headlines = [
        sentence for question in ("stable", "fair", "size", "standing") for sentence in answers.get(question, [])
    ]
    print_study(headlines, stability_tables(result), result.warnings)
