"""How values are written on the command line, and the options that every study has."""

import os
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from dualform.errors import ConfigError
from dualform.option import DATA as DATA
from dualform.option import FOLDING as FOLDING
from dualform.option import MACHINE as MACHINE
from dualform.option import OUTPUT as OUTPUT
from dualform.option import PROTOCOL as PROTOCOL
from dualform.seeds import parse_whole_numbers


def option(text: str, panel: str, *names: str) -> Any:
    """An option without a default of its own: settings have their defaults in the study's configuration."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


Overwrite = Annotated[bool, option("Allow --out to hold the result of other settings", OUTPUT)]
AsJson = Annotated[bool, option("Print result.json to standard output", OUTPUT, "--json")]
Track = Annotated[str, option("Of trackio,wandb,mlflow; they keep the numbers on this machine (none)", OUTPUT)]
DataDir = Annotated[str | None, option("Folder with data sets (or $DUALFORM_DATA)", DATA)]
TextColumn = Annotated[str | None, option("Column that holds the text", DATA)]
LabelColumn = Annotated[str | None, option("Column that holds the label", DATA)]
Choices = Annotated[str | None, option("Column of candidate answers (multiple choice)", DATA)]
Prompt = Annotated[str | None, option("Template, such as 'Review: {text}\\nSentiment:'", DATA)]
LabelWords = Annotated[str | None, option("Words, such as bad,good or 0=bad,1=good", DATA)]
Separator = Annotated[str | None, option("Text between demonstrations; eos for that token", DATA)]
OpeningTokens = Annotated[
    str | None, option("What begins a sequence: auto, none, bos, eos, or a text (auto)", DATA, "--opening")
]
SkipBadRows = Annotated[bool, option("Leave out rows that cannot be used, and count them", DATA, "--skip-bad-rows")]
Truncate = Annotated[bool, option("Cut texts that leave no room for demonstrations", DATA, "--truncate")]
K = Annotated[int | None, option("Demonstrations (32)", PROTOCOL, "-k", "--k")]
Balanced = Annotated[
    bool | None,
    option("Equally many of each class, or the first k of a shuffle", PROTOCOL, "--balanced/--shuffled"),
]
Seed = Annotated[int | None, option("One demonstration seed", PROTOCOL)]
SelectionLimit = Annotated[int | None, option("Queries that choose rates (100; 0 for all)", PROTOCOL)]
Rates = Annotated[str | None, option("Learning rates of ft (1e-4,3e-4,1e-3,3e-3,1e-2)", PROTOCOL)]
LossOn = Annotated[str | None, option("Finetune on all tokens, or on the label", PROTOCOL)]
ProbeAt = Annotated[str | None, option("Look inside at prompt (its end), or label0", PROTOCOL)]
Context = Annotated[int | None, option("Longest sequence, tokens (2048)", PROTOCOL)]
Resamples = Annotated[int | None, option("Bootstrap resamples (1000)", PROTOCOL)]
Calibration = Annotated[str | None, option("Unlabelled texts: train, generated, or a file (train)", FOLDING)]
FoldTexts = Annotated[int | None, option("Most calibration texts (256)", FOLDING, "--fold-texts")]
Plain = Annotated[str | None, option("Plain text to hold to: generated, none, or a file", FOLDING)]
Strength = Annotated[str | None, option("Ridge strength, such as 0.01, or gcv (gcv)", FOLDING)]
PlainWeight = Annotated[float | None, option("Weight of plain text: more keeps more as it was (10)", FOLDING)]
AnswerWeight = Annotated[float | None, option("Weight of tokens that predict an answer (100)", FOLDING)]
FoldLayers = Annotated[str | None, option("Layers to fold, such as 0..11 (all)", FOLDING, "--fold-layers")]
Device = Annotated[str | None, option("auto, cpu, cuda, mps", MACHINE)]
Dtype = Annotated[str | None, option("float32, float64, bfloat16, float16", MACHINE)]
RouteName = Annotated[str | None, option("packed, packed-mask, repeated, naive", MACHINE)]
TrustRemoteCode = Annotated[bool, option("Run code that comes with the checkpoint", MACHINE)]
MaxCells = Annotated[int | None, option("Most cells that the file may ask for (10000)", PROTOCOL, "--max-cells")]
DeviceMap = Annotated[str | None, option("Divide the model: auto, balanced, sequential, or JSON", MACHINE)]
MaxMemory = Annotated[str | None, option("Room for weights: cpu=2GiB,0=10GiB; the rest on disk", MACHINE)]
OffloadFolder = Annotated[str | None, option("Where weights go that disk holds", MACHINE)]
Quantize = Annotated[str | None, option("8bit or 4bit weights: accuracy of zsl and icl only", MACHINE)]


def one_or_several(seed: int | None, seeds: str | None) -> tuple[int, ...] | None:
    """`--seed` or `--seeds`.

    Raises:
        ConfigError: Both were given, or seeds cannot be read.
    """
    if seed is not None and seeds is not None:
        raise ConfigError(f"--seed {seed} and --seeds {seeds} were both given: choose one.")
    return (seed,) if seed is not None else parse_seeds(seeds)


def store_url(given: str | None) -> str:
    """Where finished cells of sweeps lie: as given, else `$DUALFORM_STORE`, else `runs/store`."""
    return given or os.environ.get("DUALFORM_STORE") or "runs/store"


def cell_limit(given: int | None) -> int:
    """Most cells of a sweep: as given, else the usual limit.

    Raises:
        ConfigError: Less than one.
    """
    from dualform.runs.sweep_config import MOST_CELLS

    if given is not None and given < 1:
        raise ConfigError(f"max-cells {given} must be 1 or more")
    return given or MOST_CELLS


def default_folder(models: tuple[str, ...], task: str, *more: str) -> Path:
    """`runs/MODEL-TASK`, paths cut to their last name."""
    parts = [*(Path(model).resolve().name for model in models), Path(task).resolve().stem, *more]
    return Path("runs") / "-".join(part.replace(":", "-") for part in parts)


def parse_seeds(text: str | None, name: str = "seeds") -> tuple[int, ...] | None:
    """Seeds or other whole numbers: `3`, `1..7`, `1,4,9`, or a mixture.

    Args:
        text: What was typed.
        name: What it is, for the message.

    Raises:
        ConfigError: Anything else.
    """
    return None if text is None else parse_whole_numbers(text, name)


def fold_settings(
    method: str | None,
    calibration: str | None,
    texts: int | None,
    plain: str | None,
    strength: str | None,
    plain_weight: float | None,
    answer_weight: float | None,
    layers: str | None,
) -> dict[str, Any] | None:
    """What was given of `FoldSettings`; None where nothing was.

    Raises:
        ConfigError: A strength or layers cannot be read, or the method does not look at something that was given.
    """
    given = {
        "method": method,
        "calibration": calibration,
        "texts": texts,
        "plain": plain,
        "strength": _strength(strength),
        "plain_weight": plain_weight,
        "answer_weight": answer_weight,
        "layers": _layers(layers),
    }
    found = {name: value for name, value in given.items() if value is not None}
    if method is not None:
        from dualform.studies.fold_settings import READ, FoldMethod

        unread = [name for name in found if name in READ and method not in READ[name]]
        # An unknown method has a message of its own.
        if unread and method in get_args(FoldMethod):
            flags = ", ".join(_FOLD_FLAGS[name] for name in unread)
            raise ConfigError(f"method {method} does not look at {flags}: leave that out, or choose another method")
    return found or None


_FOLD_FLAGS = {
    "calibration": "--calibration",
    "texts": "--fold-texts",
    "plain": "--plain",
    "strength": "--strength",
    "plain_weight": "--plain-weight",
    "answer_weight": "--answer-weight",
    "layers": "--fold-layers",
}


def parse_strengths(text: str | None) -> tuple[float | str, ...] | None:
    """`1e-3,0.1,gcv`.

    Raises:
        ConfigError: Some part is neither a number nor gcv.
    """
    return None if text is None else tuple(_strength(part.strip()) or 0.0 for part in text.split(","))


def _strength(text: str | None) -> float | str | None:
    if text is None or text == "gcv":
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"strength {text!r} should be a number such as 0.01, or gcv") from None


def _layers(text: str | None) -> tuple[int, ...] | None:
    try:
        return parse_seeds(text)
    except ConfigError:
        raise ConfigError(f"layers {text!r} should look like 3, 0..11 or 1,4,9") from None


def parse_numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """`1e-4,3e-4,1e-3`.

    Raises:
        ConfigError: Some part is no number.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} should be numbers with commas between, such as 1e-4,1e-3") from error


def parse_names(text: str | None) -> tuple[str, ...] | None:
    """`zsl,icl,ft`."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
