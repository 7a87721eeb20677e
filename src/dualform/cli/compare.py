"""`dualform compare`: the main job."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dualform.cli.guard import guarded, quiet_transformers, say
from dualform.cli.options import parse_names, parse_numbers, parse_seeds, unescape

_DATA = "Data"
_PROTOCOL = "Protocol"
_MACHINE = "Model and machine"
_OUTPUT = "Output"


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


@guarded
def compare(
    model: Annotated[str, typer.Argument(help="smollm2-135m, gemma3-270m, a folder, a .gguf file, a hub id")],
    task: Annotated[str, typer.Argument(help="reviews, sst2, a data file, a YAML file, a folder, a hub name")],
    out: Annotated[Path | None, _option("Folder of the run. Default: runs/MODEL-TASK", _OUTPUT, "--out")] = None,
    overwrite: Annotated[bool, _option("Allow --out to hold the result of other settings", _OUTPUT)] = False,
    as_json: Annotated[bool, _option("Print result.json to standard output", _OUTPUT, "--json")] = False,
    data_dir: Annotated[str | None, _option("Folder with data sets (or $DUALFORM_DATA)", _DATA)] = None,
    text: Annotated[str | None, _option("Column that holds the text", _DATA)] = None,
    label: Annotated[str | None, _option("Column that holds the label", _DATA)] = None,
    choices: Annotated[str | None, _option("Column of candidate answers (multiple choice)", _DATA)] = None,
    prompt: Annotated[str | None, _option("Template, such as 'Review: {text}\\nSentiment:'", _DATA)] = None,
    label_words: Annotated[str | None, _option("Words, such as bad,good or 0=bad,1=good", _DATA)] = None,
    separator: Annotated[str | None, _option("Text between demonstrations; eos for that token", _DATA)] = None,
    preset: Annotated[str, _option("default, or dai2023: the paper's protocol", _PROTOCOL)] = "default",
    k: Annotated[int | None, _option("Demonstrations (32)", _PROTOCOL, "-k", "--k")] = None,
    balanced: Annotated[
        bool | None,
        _option("Equally many of each class, or the first k of a shuffle", _PROTOCOL, "--balanced/--shuffled"),
    ] = None,
    label_rule: Annotated[str | None, _option("Labels shown: true, shuffled, random", _PROTOCOL)] = None,
    seed: Annotated[int | None, _option("One demonstration seed", _PROTOCOL)] = None,
    seeds: Annotated[str | None, _option("Several: 1..7 or 1,4,9 (1..3)", _PROTOCOL)] = None,
    limit: Annotated[int | None, _option("Reported queries (200; 0 for all)", _PROTOCOL)] = None,
    selection_limit: Annotated[int | None, _option("Queries that choose rates (100; 0 for all)", _PROTOCOL)] = None,
    learners: Annotated[str | None, _option("Of zsl,icl,ft,lora,probe (all)", _PROTOCOL)] = None,
    rates: Annotated[str | None, _option("Learning rates of ft (1e-4,3e-4,1e-3,3e-3,1e-2)", _PROTOCOL)] = None,
    lora_rates: Annotated[str | None, _option("Learning rates of lora (3e-5,1e-4,3e-4,1e-3)", _PROTOCOL)] = None,
    tune: Annotated[str | None, _option("Search rates on the first seed, or on each", _PROTOCOL)] = None,
    select_on: Annotated[str | None, _option("Choose rates on validation, or on report", _PROTOCOL)] = None,
    loss_on: Annotated[str | None, _option("Finetune on all tokens, or on the label", _PROTOCOL)] = None,
    probe: Annotated[str | None, _option("Look inside at prompt (its end), or label0", _PROTOCOL)] = None,
    context: Annotated[int | None, _option("Longest sequence, tokens (2048)", _PROTOCOL)] = None,
    resamples: Annotated[int | None, _option("Bootstrap resamples (1000)", _PROTOCOL)] = None,
    device: Annotated[str | None, _option("auto, cpu, cuda, mps", _MACHINE)] = None,
    dtype: Annotated[str | None, _option("float32, float64, bfloat16, float16", _MACHINE)] = None,
    route: Annotated[str | None, _option("packed, packed-mask, repeated, naive", _MACHINE)] = None,
    trust_remote_code: Annotated[bool, _option("Run code that comes with the checkpoint", _MACHINE)] = False,
) -> None:
    """Adapt one model by prompt and by finetuning on the same demonstrations, look inside, compare.

    Examples:
      dualform compare smollm2-135m reviews

      dualform compare smollm2-135m sst2 --data-dir data --seeds 1..5 --limit 500

      dualform compare gpt2 tickets.csv --text body --label topic -k 16

      dualform compare ./checkpoint mytask.yaml --preset dai2023 --json > result.json
    """
    from dualform.errors import ConfigError
    from dualform.runs.store import RunFolder, free_folder
    from dualform.studies.comparison import compare as run
    from dualform.studies.comparison_config import comparison_config

    if seed is not None and seeds is not None:
        raise ConfigError(f"--seed {seed} and --seeds {seeds} were both given: choose one.")
    given: dict[str, Any] = {
        "data_dir": data_dir,
        "text": text,
        "label": label,
        "choices": choices,
        "prompt": unescape(prompt),
        "label_words": unescape(label_words),
        "separator": unescape(separator),
        "k": k,
        "balanced": balanced,
        "label_rule": label_rule,
        "seeds": (seed,) if seed is not None else parse_seeds(seeds),
        "learners": parse_names(learners),
        "rates": parse_numbers("rates", rates),
        "lora_rates": parse_numbers("lora_rates", lora_rates),
        "tune": tune,
        "select_on": select_on,
        "loss_on": loss_on,
        "probe": probe,
        "context": context,
        "resamples": resamples,
        "device": device,
        "dtype": dtype,
        "route": route,
        "trust_remote_code": trust_remote_code or None,
        "limit": limit,
        "selection_limit": selection_limit,
    }
    config = comparison_config(model, task, preset=preset, **given)  # type: ignore[arg-type]
    path = out or free_folder(default_folder(model, task, preset), config)
    folder = RunFolder(path, config, overwrite=overwrite)
    from dualform.cli.progress import progress_bar

    quiet_transformers()
    try:
        with progress_bar() as bar:
            comparison = run(config, cells=folder, progress=bar)
    except KeyboardInterrupt:
        say("Finished seeds are kept: the same command goes on where it stopped.")
        raise
    folder.finish(comparison)
    if as_json:
        sys.stdout.write(comparison.result.to_json() + "\n")
    else:
        _print_tables(comparison.result)
    say(f"\nThe page: {folder.path / 'report.html'}")


def default_folder(model: str, task: str, preset: str) -> Path:
    """`runs/MODEL-TASK`, paths cut to their last name."""
    parts = [Path(model).resolve().name, Path(task).resolve().stem, *([] if preset == "default" else [preset])]
    return Path("runs") / "-".join(part.replace(":", "-") for part in parts)


def _print_tables(result: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    from dualform.report.table import accuracy_table, cost_table, similarity_table
    from dualform.report.words import verdict

    console = Console()
    for sentence in verdict(result):
        console.print(Text(sentence))
    for table in (accuracy_table(result), similarity_table(result), cost_table(result)):
        if table.row_count:
            console.print()
            console.print(table)
    for warning in result.warnings:
        console.print(Text(f"Note: {warning}", style="yellow"))
