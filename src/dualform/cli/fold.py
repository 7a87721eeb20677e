"""`dualform fold`: the prompt written into an ordinary checkpoint."""

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from dualform.cli.guard import guarded, quiet_transformers, say
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
    MaxMemory,
    OffloadFolder,
    OpeningTokens,
    Plain,
    PlainWeight,
    Prompt,
    Resamples,
    RouteName,
    Seed,
    Separator,
    SkipBadRows,
    Strength,
    TextColumn,
    Truncate,
    TrustRemoteCode,
    fold_settings,
    option,
)
from dualform.cli.planning import only_planned
from dualform.cli.task_data import check_task, task_settings
from dualform.tasks.options import unescape


@guarded
def fold(
    model: Annotated[str, typer.Argument(help="smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id")],
    task: Annotated[str, typer.Argument(help="reviews, sst2, a data file, a YAML file, a folder, a hub name")],
    to: Annotated[Path, option("Folder of the new checkpoint or adapter", OUTPUT, "--to")],
    overwrite: Annotated[bool, option("Replace a checkpoint or adapter that is there", OUTPUT)] = False,
    form: Annotated[str | None, option("checkpoint, or lora: an adapter beside the base", OUTPUT, "--as")] = None,
    rank: Annotated[int | None, option("Rank of the adapter (16)", OUTPUT)] = None,
    verify: Annotated[bool, option("Load it in a fresh process and compare", OUTPUT)] = False,
    as_json: AsJson = False,
    method: Annotated[str | None, option("ridge, thought-vector, thought-matrix, mezo", FOLDING)] = None,
    k: K = None,
    seed: Seed = None,
    balanced: Balanced = None,
    calibration: Calibration = None,
    texts: FoldTexts = None,
    plain: Plain = None,
    strength: Strength = None,
    plain_weight: PlainWeight = None,
    answer_weight: AnswerWeight = None,
    layers: FoldLayers = None,
    limit: Annotated[int | None, option("Queries it is measured on (200; 0 for all)", PROTOCOL)] = None,
    perplexity: Annotated[str | None, option("Measure perplexity on this file, a passage a line", PROTOCOL)] = None,
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
    """Fold a prompt of demonstrations into the weights and write an ordinary checkpoint.

    The folded model is asked zero-shot: a query costs its own tokens and no more. No gradient is taken, and no
    label is read but those of the demonstrations.

    Examples:
      dualform fold smollm2-135m reviews --to folded --verify

      dualform fold gpt2 tickets.csv --text body --label topic -k 16 --calibration more-tickets.txt --to folded

      dualform fold smollm2-135m sst2 --data-dir data --as lora --rank 16 --to sst2-adapter
    """
    data = task_settings(
        data_dir, text, label, choices, prompt, label_words, separator, skip_bad_rows=skip_bad_rows, truncate=truncate
    )
    # Before the libraries are loaded that a model needs: a slip in a table is reported at once.
    at_hand = check_task(task, data)
    from dualform.studies.fold.config import fold_config
    from dualform.studies.fold.run import fold as run
    from dualform.studies.fold_settings import FoldMethod
    from dualform.studies.folds import require_weights

    if method in get_args(FoldMethod):
        # Told before anything about settings of such a method.
        require_weights(cast(FoldMethod, method))
    config = fold_config(
        model,
        task,
        fold=fold_settings(method, calibration, texts, plain, strength, plain_weight, answer_weight, layers),
        form=form,
        rank=rank,
        verify=verify or None,
        perplexity=perplexity,
        k=k,
        seeds=None if seed is None else (seed,),
        balanced=balanced,
        limit=limit,
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
    if only_planned(config):
        return
    from dualform.cli.printing import print_json
    from dualform.cli.progress import progress_bar

    quiet_transformers()
    with progress_bar() as bar:
        written = run(config, to, task=at_hand, overwrite=overwrite, progress=bar)
    if as_json:
        print_json(written.result.to_json())
    else:
        _print(written.result)
    say(f"\nThe {'adapter' if config.form == 'lora' else 'checkpoint'}: {to}")
    say(f"Its numbers: {to}/result.json; dualform report {to} makes a page of them.")
    say(f"For the hub: dualform push {to} OWNER/NAME shows what would be sent.")


def _print(result: Any) -> None:
    from dualform.cli.printing import print_study
    from dualform.studies.comparison.table import accuracy_table, against_table, cost_table
    from dualform.studies.fold.words import fold_verdict

    print_study(
        fold_verdict(result), (accuracy_table(result), against_table(result), cost_table(result)), result.warnings
    )
