"""`dualform stability`: how much hangs on which demonstrations were drawn, and in which order."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded
from dualform.cli.options import (
    DATA,
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
    Prompt,
    Quantize,
    Rates,
    Resamples,
    RouteName,
    Seed,
    SelectionLimit,
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
def stability(
    models: Annotated[list[str], typer.Argument(help="smollm2-135m, gemma3-270m, folders, .gguf files, hub ids")],
    task: Annotated[str, option("reviews, sst2, a data file, a YAML file, a folder, a hub name", DATA, "--task")],
    out: Annotated[Path | None, option("Folder of the run. Default: runs/MODELS-TASK-stability", OUTPUT)] = None,
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
    seeds: Annotated[str | None, option("Demonstration sets: 1..20, 1,4,9, or one (1..20)", PROTOCOL)] = None,
    orders: Annotated[int | None, option("Orders of each set for ICL (10)", PROTOCOL)] = None,
    ft_seeds: Annotated[int | None, option("Sets on which FT is run too (10)", PROTOCOL)] = None,
    ft_orders: Annotated[int | None, option("Orders of these for FT (2)", PROTOCOL)] = None,
    label_seeds: Annotated[int | None, option("Sets shown with wrong labels too (10)", PROTOCOL)] = None,
    limit: Annotated[int | None, option("Queries (100; 0 for all)", PROTOCOL)] = None,
    selection_limit: SelectionLimit = None,
    rates: Rates = None,
    further_rates: Annotated[str | None, option("Rates at which FT is run beside the one chosen", PROTOCOL)] = None,
    loss_on: LossOn = None,
    context: Context = None,
    resamples: Resamples = None,
    device: Device = None,
    dtype: Dtype = None,
    route: RouteName = None,
    trust_remote_code: TrustRemoteCode = False,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    quantize: Quantize = None,
) -> None:
    """Measure how ICL and FT vary over demonstration sets, orders and labels, and when they collapse.

    Examples:
      dualform stability smollm2-135m --task reviews

      dualform stability smollm2-135m gemma3-270m --task sst2 --data-dir data --seeds 1..20 --orders 10

      dualform stability ./checkpoint --task tickets.csv --text body --label topic --seeds 1..8 --ft-seeds 4
    """
    data = task_settings(
        data_dir, text, label, choices, prompt, label_words, separator, skip_bad_rows=skip_bad_rows, truncate=truncate
    )
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    at_hand = check_task(task, data)
    from dualform.studies.stability.config import stability_config
    from dualform.studies.stability.run import stability as run
    from dualform.studies.stability.summary import runs_table

    given: dict[str, Any] = {
        **data,
        "opening": unescape(opening),
        "k": k,
        "balanced": balanced,
        "seeds": one_or_several(seed, seeds),
        "orders": orders,
        "ft_seeds": ft_seeds,
        "ft_orders": ft_orders,
        "label_seeds": label_seeds,
        "limit": limit,
        "selection_limit": selection_limit,
        "rates": parse_numbers("rates", rates),
        "further_rates": parse_numbers("further-rates", further_rates),
        "loss_on": loss_on,
        "context": context,
        "resamples": resamples,
        "device": device,
        "dtype": dtype,
        "route": route,
        "trust_remote_code": trust_remote_code or None,
        "device_map": device_map,
        "max_memory": max_memory,
        "offload_folder": offload_folder,
        "quantize": quantize,
    }
    config = stability_config(tuple(models), task, **given)

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any]:
        study = run(config, task=at_hand, cells=cells, progress=progress)
        return study.result, runs_table(study.asked, study.models)

    run_study(
        config,
        carried_out,
        RunOptions(out, overwrite, as_json, track),
        default=default_folder(tuple(models), task, "stability"),
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
