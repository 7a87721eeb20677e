"""`dualform save`: writes a learner of a finished run as files that answer queries without dualform."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dualform.cli.guard import guarded, quiet_transformers, say
from dualform.cli.options import OUTPUT, option


@guarded
def save(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of compare or advise", show_default=False)],
    learner: Annotated[str, typer.Argument(help="Name of a learner of the run, such as lora", show_default=False)],
    to: Annotated[Path, option("Folder to write", OUTPUT, "--to")],
    seed: Annotated[int | None, option("Seed of the demonstrations (the run's first)", OUTPUT)] = None,
    labels: Annotated[int | None, option("Budget of labels (the run's largest)", OUTPUT)] = None,
    form: Annotated[
        Literal["checkpoint", "lora"],
        option("How changed weights are written: checkpoint, or lora for an adapter", OUTPUT, "--as"),
    ] = "checkpoint",
    rank: Annotated[int | None, option("Rank of the adapter (that of lora in the run)", OUTPUT)] = None,
    overwrite: Annotated[bool, option("Replace what was saved there before", OUTPUT)] = False,
) -> None:
    """Write a learner of a finished run, with a program that answers queries without dualform.

    The learner is adapted again with the run's settings. A finetuned or folded model becomes a checkpoint or an
    adapter, a prompted one its prompt with the calibration, and a classifier a table of weights. The answers of the
    written files, in a fresh process, are compared with those of the run.

    Examples:
      dualform save runs/smollm2-135m-reviews lora --to winner

      dualform save runs/smollm2-135m-reviews icl --to prompt --seed 2

      dualform save runs/smollm2-135m-reviews-advise tfidf --labels 128 --to words
    """
    from dualform.errors import ConfigError
    from dualform.runs.store import read_result

    if not (run / "result.json").is_file():
        raise ConfigError(
            f"{run} has no result.json: give the folder of a finished run of compare or advise (see --out)."
        )
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank} must be at least 1")
    result = read_result(run)
    quiet_transformers()
    from dualform.cli.progress import progress_bar
    from dualform.studies.saving import save_learner

    with progress_bar() as bar:
        saved = save_learner(
            run, result, learner, to, seed=seed, labels=labels, form=form, rank=rank, overwrite=overwrite, progress=bar
        )
    _print(saved, learner)


def _print(saved: Any, learner: str) -> None:
    measured = "" if saved.accuracy is None else f" Its accuracy there was {saved.accuracy:.3f} (n = {saved.n})."
    say(f"{learner}, seed {saved.seed}, {saved.labels} labels, as {saved.what} in {saved.folder}.{measured}")
    say(
        f"A fresh process without dualform gives the same answers; log-probabilities differ by at most "
        f"{saved.difference:.1e} nats."
    )
    say(f"Its use: {saved.folder}/README.md")
