"""`dualform regress`: the laboratory from the command line."""

from pathlib import Path
from typing import Annotated, Any

from dualform.cli.guard import guarded
from dualform.cli.options import (
    OUTPUT,
    PROTOCOL,
    AsJson,
    Overwrite,
    Track,
    one_or_several,
    option,
    parse_names,
)
from dualform.cli.running import run_study

TRAINING = "Training"


@guarded
def regress(
    study: Annotated[
        list[str] | None,
        option("constructed, trained, phases, layers, shift: again, or with commas, for more (all)", PROTOCOL),
    ] = None,
    out: Annotated[Path | None, option("Folder of the run. Default: runs/regress-STUDY", OUTPUT, "--out")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    track: Track = "none",
    seed: Annotated[int | None, option("One seed", PROTOCOL)] = None,
    seeds: Annotated[str | None, option("Several: 1..7 or 1,4,9 (1..5)", PROTOCOL)] = None,
    dimension: Annotated[int | None, option("Of inputs (10)", PROTOCOL)] = None,
    points: Annotated[int | None, option("Examples in context (10)", PROTOCOL)] = None,
    steps: Annotated[
        float | None, option("Steps of training, as a multiple of each study's own; 0.1 for a quick look (1)", TRAINING)
    ] = None,
) -> None:
    """The laboratory: is attention gradient descent where theory says so, and where does it stop being so?

    Examples:
      dualform regress

      dualform regress --study constructed

      dualform regress --study trained --seeds 1..5 --out runs/trained

      dualform regress --study phases,layers --seeds 1..3 --steps 0.1
    """
    from dualform.studies.laboratory.config import LAB_NAMES, regression_config
    from dualform.studies.laboratory.run import run_laboratory

    config = regression_config(
        studies=[name for text in study for name in parse_names(text) or ()] if study else None,
        seeds=one_or_several(seed, seeds),
        dimension=dimension,
        points=points,
        steps=steps,
    )
    run_study(
        config,
        lambda cells, progress: run_laboratory(config, cells=cells, progress=progress),
        out=out,
        default=Path("runs") / "-".join(("regress", *(() if config.studies == LAB_NAMES else config.studies))),
        overwrite=overwrite,
        kept="trainings",
        as_json=as_json,
        show=_print_claims,
        track=track,
    )


def _print_claims(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.laboratory.table import claim_tables
    from dualform.studies.laboratory.words import laboratory_verdict

    print_study(laboratory_verdict(result), claim_tables(result), result.warnings)
