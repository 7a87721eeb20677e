"""`dualform folding`: what folding depends on, and what it does to everything else."""

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
    FoldTexts,
    K,
    LabelColumn,
    LabelWords,
    MaxMemory,
    OffloadFolder,
    OpeningTokens,
    Overwrite,
    Plain,
    PlainWeight,
    Prompt,
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
    parse_seeds,
    parse_strengths,
)
from dualform.cli.running import RunOptions, run_study
from dualform.cli.task_data import check_task, task_settings
from dualform.tasks.options import unescape


@guarded
def folding(
    model: Annotated[str, typer.Argument(help="smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id")],
    task: Annotated[str, typer.Argument(help="reviews, sst2, a data file, a YAML file, a folder, a hub name")],
    out: Annotated[Path | None, option("Folder of the run. Default: runs/MODEL-TASK-folding", OUTPUT, "--out")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    track: Track = "none",
    axes: Annotated[str | None, option("Of method,k,texts,strength,layers,source (all)", FOLDING)] = None,
    methods: Annotated[str | None, option("Methods compared (all)", FOLDING)] = None,
    ks: Annotated[str | None, option("Demonstrations tried (4,8,16,32,64,128)", FOLDING)] = None,
    text_counts: Annotated[str | None, option("Numbers of texts tried (16,64,256,1024)", FOLDING)] = None,
    strengths: Annotated[str | None, option("Ridge strengths tried (1e-4 to 1, gcv)", FOLDING)] = None,
    layer_sets: Annotated[str | None, option("all, first half, last quarter, ... (all)", FOLDING)] = None,
    transfer: Annotated[str | None, option("Other tasks to ask the folded model", FOLDING)] = None,
    compose: Annotated[str | None, option("Other tasks whose folds are added", FOLDING)] = None,
    perplexity: Annotated[str | None, option("Plain text to read before and after", FOLDING)] = None,
    ft: Annotated[bool | None, option("Finetune beside it, or not", FOLDING, "--ft/--no-ft")] = None,
    calibration: Calibration = None,
    fold_texts: FoldTexts = None,
    plain: Plain = None,
    strength: Strength = None,
    plain_weight: PlainWeight = None,
    answer_weight: AnswerWeight = None,
    k: K = None,
    balanced: Balanced = None,
    seed: Seed = None,
    seeds: Annotated[str | None, option("Several: 1..7 or 1,4,9 (1..3)", PROTOCOL)] = None,
    limit: Annotated[int | None, option("Reported queries (200; 0 for all)", PROTOCOL)] = None,
    selection_limit: SelectionLimit = None,
    rates: Rates = None,
    context: Context = None,
    resamples: Resamples = None,
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
    device: Device = None,
    dtype: Dtype = None,
    route: RouteName = None,
    trust_remote_code: TrustRemoteCode = False,
    device_map: DeviceMap = None,
    max_memory: MaxMemory = None,
    offload_folder: OffloadFolder = None,
) -> None:
    """Fold one prompt in many ways and say what decides how well it goes.

    Examples:
      dualform folding smollm2-135m reviews --axes method

      dualform folding smollm2-135m sst2 --data-dir data --axes k,texts --seeds 1..5

      dualform folding smollm2-135m reviews --transfer tweets --compose subj --perplexity prose.txt
    """
    data = task_settings(
        data_dir, text, label, choices, prompt, label_words, separator, skip_bad_rows=skip_bad_rows, truncate=truncate
    )
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    at_hand = check_task(task, data)
    from dualform.studies.folding.config import folding_config
    from dualform.studies.folding.run import folding as run
    from dualform.studies.folding.summary import folding_table

    config = folding_config(
        model,
        task,
        fold=fold_settings(None, calibration, fold_texts, plain, strength, plain_weight, answer_weight, None),
        axes=parse_names(axes),
        methods=parse_names(methods),
        ks=parse_seeds(ks, "ks"),
        text_counts=parse_seeds(text_counts, "text counts"),
        strengths=parse_strengths(strengths),
        layer_sets=parse_names(layer_sets),
        transfer=parse_names(transfer),
        compose=parse_names(compose),
        perplexity=perplexity,
        ft=ft,
        k=k,
        balanced=balanced,
        seeds=one_or_several(seed, seeds),
        limit=limit,
        selection_limit=selection_limit,
        rates=parse_numbers("rates", rates),
        context=context,
        resamples=resamples,
        opening=unescape(opening),
        device=device,
        dtype=dtype,
        route=route,
        trust_remote_code=trust_remote_code or None,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        **data,
    )

    def carried_out(cells: Any, progress: Any) -> tuple[Any, Any]:
        study = run(config, task=at_hand, cells=cells, progress=progress)
        return study.result, folding_table(study.asked, study.base, study.seeds)

    run_study(
        config,
        carried_out,
        RunOptions(out, overwrite, as_json, track),
        default=default_folder((model,), task, "folding"),
        kept="folds",
        show=_print_tables,
    )


def _print_tables(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.folding.table import folding_tables
    from dualform.studies.folding.words import folding_verdict

    print_study(folding_verdict(result), folding_tables(result), result.warnings)
