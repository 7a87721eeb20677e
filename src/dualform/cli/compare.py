"""`dualform compare`: the main job."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded
from dualform.cli.options import (
    FOLDING,
    OUTPUT,
    PROTOCOL,
    AnswerWeight,
    AsJson,
    Balanced,
    Calibration,
    Choices,
    Context,
    DataDir,
    Device,
    DeviceMap,
    Dtype,
    FoldLayers,
    FoldTexts,
    K,
    LabelColumn,
    LabelWords,
    LossOn,
    MaxMemory,
    OffloadFolder,
    OpeningTokens,
    Overwrite,
    Plain,
    PlainWeight,
    ProbeAt,
    Prompt,
    Quantize,
    Rates,
    Resamples,
    RouteName,
    Seed,
    SelectionLimit,
    Separator,
    SkipBadRows,
    Strength,
    TextColumn,
    Track,
    Truncate,
    TrustRemoteCode,
    default_folder,
    fold_settings,
    one_or_several,
    option,
    parse_names,
    parse_numbers,
)
from dualform.cli.running import RunOptions, run_study
from dualform.cli.task_data import check_task, task_settings
from dualform.tasks.options import unescape

CONTROLS = "Controls"


@guarded
def compare(
    model: Annotated[str, typer.Argument(help="smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id")],
    task: Annotated[str, typer.Argument(help="reviews, sst2, a data file, a YAML file, a folder, a hub name")],
    out: Annotated[Path | None, option("Folder of the run. Default: runs/MODEL-TASK", OUTPUT, "--out")] = None,
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
    preset: Annotated[str, option("default, or dai2023: the paper's protocol", PROTOCOL)] = "default",
    k: K = None,
    balanced: Balanced = None,
    label_rule: Annotated[str | None, option("Labels shown: true, shuffled, random, flipped", PROTOCOL)] = None,
    seed: Seed = None,
    seeds: Annotated[str | None, option("Several: 1..7 or 1,4,9 (1..3)", PROTOCOL)] = None,
    limit: Annotated[int | None, option("Reported queries (200; 0 for all)", PROTOCOL)] = None,
    selection_limit: SelectionLimit = None,
    learners: Annotated[str | None, option("Of zsl,icl,ft,lora,probe,fold (all)", PROTOCOL)] = None,
    rates: Rates = None,
    lora_rates: Annotated[str | None, option("Learning rates of lora (3e-5,1e-4,3e-4,1e-3)", PROTOCOL)] = None,
    tune: Annotated[str | None, option("Search rates on the first seed, or on each", PROTOCOL)] = None,
    select: Annotated[str | None, option("Keep the seed best for icl, ft or both; none: all", PROTOCOL)] = None,
    select_on: Annotated[str | None, option("Choose on validation, or on report", PROTOCOL)] = None,
    loss_on: LossOn = None,
    probe: ProbeAt = None,
    context: Context = None,
    resamples: Resamples = None,
    controls: Annotated[str | None, option("all, none or names (see the guide)", CONTROLS)] = None,
    control_limit: Annotated[int | None, option("Queries read for controls (100; 0 for all)", CONTROLS)] = None,
    other_task: Annotated[str | None, option("Whose demonstrations other_task shows", CONTROLS)] = None,
    rounding: Annotated[str | None, option("Repeat ft: choose, report, none (choose)", PROTOCOL)] = None,
    explore: Annotated[int | None, option("Queries in the page's attention explorer (8; 0 for none)", OUTPUT)] = None,
    fold_method: Annotated[str | None, option("ridge or another (see the guide)", FOLDING)] = None,
    calibration: Calibration = None,
    fold_texts: FoldTexts = None,
    plain: Plain = None,
    strength: Strength = None,
    plain_weight: PlainWeight = None,
    answer_weight: AnswerWeight = None,
    fold_layers: FoldLayers = None,
    device: Device = None,
    dtype: Dtype = None,
    route: RouteName = None,
    trust_remote_code: TrustRemoteCode = False,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
    quantize: Quantize = None,
) -> None:
    """Adapt one model by prompt and by finetuning on the same demonstrations, look inside, compare.

    Examples:
      dualform compare smollm2-135m reviews

      dualform compare smollm2-135m sst2 --data-dir data --seeds 1..5 --limit 500

      dualform compare gpt2 tickets.csv --text body --label topic -k 16

      dualform compare ./checkpoint mytask.yaml --preset dai2023 --json > result.json

      dualform compare smollm2-135m reviews --controls all
    """
    data = task_settings(
        data_dir, text, label, choices, prompt, label_words, separator, skip_bad_rows=skip_bad_rows, truncate=truncate
    )
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    at_hand = check_task(task, {**data, "paper_rows": preset == "dai2023"})
    from dualform.studies.comparison.config import comparison_config
    from dualform.studies.comparison.run import compare as run
    from dualform.studies.comparison.summary import examples_table

    given: dict[str, Any] = {
        **data,
        "opening": unescape(opening),
        "k": k,
        "balanced": balanced,
        "label_rule": label_rule,
        "seeds": one_or_several(seed, seeds),
        "learners": parse_names(learners),
        "rates": parse_numbers("rates", rates),
        "fold": fold_settings(
            fold_method, calibration, fold_texts, plain, strength, plain_weight, answer_weight, fold_layers
        ),
        "lora_rates": parse_numbers("lora_rates", lora_rates),
        "tune": tune,
        "select": select,
        "select_on": select_on,
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
        "quantize": quantize,
        "controls": parse_names(controls),
        "control_limit": control_limit,
        "other_task": other_task,
        "limit": limit,
        "selection_limit": selection_limit,
        "rounding": rounding,
        "explore": explore,
    }
    config = comparison_config(model, task, preset=preset, **given)  # type: ignore[arg-type]

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any, Any]:
        comparison = run(config, task=at_hand, cells=cells, progress=progress)
        return comparison.result, examples_table(comparison.asked, comparison.outcomes), comparison.attention

    run_study(
        config,
        carried_out,
        RunOptions(out, overwrite, as_json, track),
        default=default_folder((model,), task, *([] if preset == "default" else [preset])),
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
