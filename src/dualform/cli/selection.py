"""`dualform selection`: how much each way of choosing seed, order and rate flatters each learner."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded
from dualform.cli.options import (
    OUTPUT,
    PROTOCOL,
    AsJson,
    Balanced,
    Choices,
    Context,
    DataDir,
    Device,
    DeviceMap,
    Dtype,
    K,
    LabelColumn,
    LabelWords,
    LossOn,
    MaxMemory,
    OffloadFolder,
    OpeningTokens,
    Overwrite,
    ProbeAt,
    Prompt,
    Rates,
    Resamples,
    RouteName,
    Seed,
    Separator,
    SkipBadRows,
    TextColumn,
    Track,
    Truncate,
    TrustRemoteCode,
    default_folder,
    one_or_several,
    option,
    parse_numbers,
)
from dualform.cli.running import RunOptions, run_study
from dualform.cli.task_data import check_task, task_settings
from dualform.tasks.options import unescape


@guarded
def selection(
    model: Annotated[str, typer.Argument(help="smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id")],
    task: Annotated[str, typer.Argument(help="reviews, sst2, a data file, a YAML file, a folder, a hub name")],
    out: Annotated[Path | None, option("Folder of the run. Default: runs/MODEL-TASK-selection", OUTPUT)] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    track: Track = "none",
    data_dir: DataDir = None,
    text: TextColumn = None,
    label: LabelColumn = None,
    choices: Choices = None,
    prompt: Prompt = None,
    label_words: LabelWords = None,
    separator: Separator = None,
    opening: OpeningTokens = None,
    skip_bad_rows: SkipBadRows = False,
    truncate: Truncate = False,
    k: K = None,
    balanced: Balanced = None,
    seed: Seed = None,
    seeds: Annotated[str | None, option("Seeds to choose among, such as 1..8 or 1,4,9 (1..8)", PROTOCOL)] = None,
    orders: Annotated[int | None, option("Orders of ICL a seed (as many as FT's budget pays for)", PROTOCOL)] = None,
    rates: Rates = None,
    selection_limit: Annotated[int | None, option("Validation queries (100; 0 for all)", PROTOCOL)] = None,
    limit: Annotated[int | None, option("Report queries (200; 0 for half of the split)", PROTOCOL)] = None,
    untouched_limit: Annotated[
        int | None, option("Queries on which nothing is chosen (400; 0 for all that are left)", PROTOCOL)
    ] = None,
    similarity_limit: Annotated[
        int | None, option("Report queries on which likeness is measured (64; 0 for all)", PROTOCOL)
    ] = None,
    loss_on: LossOn = None,
    probe: ProbeAt = None,
    context: Context = None,
    resamples: Resamples = None,
    device: Device = None,
    dtype: Dtype = None,
    route: RouteName = None,
    trust_remote_code: TrustRemoteCode = False,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
) -> None:
    """Measure how much choosing seed, order and rate flatters ICL and FT, and whether likeness hangs on it.

    Examples:
      dualform selection smollm2-135m reviews

      dualform selection smollm2-135m sst2 --data-dir data --seeds 1..7 --rates 1e-3,3e-3,1e-2,3e-2

      dualform selection ./checkpoint tickets.csv --text body --label topic --seeds 1..4 --limit 100
    """
    data = task_settings(
        data_dir, text, label, choices, prompt, label_words, separator, skip_bad_rows=skip_bad_rows, truncate=truncate
    )
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    at_hand = check_task(task, data)
    from dualform.studies.selection.config import selection_config
    from dualform.studies.selection.run import selection as run
    from dualform.studies.selection.summary import trials_table

    given: dict[str, Any] = {
        **data,
        "opening": unescape(opening),
        "k": k,
        "balanced": balanced,
        "seeds": one_or_several(seed, seeds),
        "orders": orders,
        "rates": parse_numbers("rates", rates),
        "selection_limit": selection_limit,
        "limit": limit,
        "untouched_limit": untouched_limit,
        "similarity_limit": similarity_limit,
        "loss_on": loss_on,
        "probe": probe,
        "context": context,
        "resamples": resamples,
        "device": device,
        "dtype": dtype,
        "route": route,
        "trust_remote_code": trust_remote_code or None,
        "device_map": device_map,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
    }
    config = selection_config(model, task, **given)

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any]:
        study = run(config, task=at_hand, cells=cells, progress=progress)
        return study.result, trials_table(study.asked, study.found)

    run_study(
        config,
        carried_out,
        RunOptions(out, overwrite, as_json, track),
        default=default_folder((model,), task, "selection"),
        kept="seeds",
        show=_print_tables,
    )


def _print_tables(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.selection.table import selection_tables
    from dualform.studies.selection.words import selection_verdict

    print_study(selection_verdict(result), selection_tables(result), result.warnings)
