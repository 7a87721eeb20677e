"""`dualform fold`: folds a prompt into the weights of an ordinary checkpoint."""

from pathlib import Path
from typing import Annotated, Any, get_args

from dualform.cli.generated import refuse_unread, study_command
from dualform.cli.guard import quiet_transformers, say
from dualform.cli.options import AsJson, option
from dualform.cli.planning import only_planned
from dualform.option import OUTPUT
from dualform.studies.fold.config import FoldConfig, fold_config
from dualform.studies.fold_settings import FoldMethod, require_weights


@study_command(FoldConfig)
def fold(
    settings: dict[str, Any],
    to: Annotated[Path, option("Folder of the new checkpoint or adapter", OUTPUT, "--to")],
    overwrite: Annotated[bool, option("Replace an existing checkpoint or adapter", OUTPUT)] = False,
    as_json: AsJson = False,
) -> None:
    """Fold a prompt of demonstrations into the weights and write an ordinary checkpoint.

    The folded model is used without a prompt, so a query costs only its own tokens. Folding computes no gradients
    and uses no labels except those of the demonstrations.

    Examples:
      dualform fold smollm2-135m reviews --to folded --verify

      dualform fold gpt2 tickets.csv --text body --label topic -k 16 --calibration more-tickets.txt --to folded

      dualform fold smollm2-135m sst2 --data-dir data --as lora --rank 16 --to sst2-adapter
    """
    method = settings.get("fold", {}).get("method")
    if method in get_args(FoldMethod):
        # Checked first, because other messages would not apply to such a method.
        require_weights(method)
    refuse_unread(FoldConfig, settings)
    config = fold_config(**settings)
    # Read before the large libraries are loaded, so that errors in the data are reported at once.
    task = config.load_local_task()
    if only_planned(config):
        return
    from dualform.cli.printing import print_json
    from dualform.cli.progress import progress_bar
    from dualform.studies.fold.run import fold as write_fold

    quiet_transformers()
    with progress_bar() as bar:
        written = write_fold(config, to, task=task, overwrite=overwrite, progress=bar)
    if as_json:
        print_json(written.result.to_json())
    else:
        _print(written.result)
    say(f"\nThe {'adapter' if config.form == 'lora' else 'checkpoint'}: {to}")
    say(f"Its numbers: {to}/result.json; dualform report {to} writes a report of them.")
    say(f"For the hub: dualform push {to} OWNER/NAME shows what would be uploaded.")


def _print(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.comparison.table import accuracy_table, against_table, cost_table
    from dualform.studies.fold.words import headlines, notes

    tables = accuracy_table(result), against_table(result), cost_table(result)
    print_study(headlines(result), tables, (*result.warnings, *notes(result)))
