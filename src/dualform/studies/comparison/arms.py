"""Which arms of a comparison a model allows: asked before anything is computed, so that no run ends half-way.

An arm that is part of the default settings is left out where it is impossible, and named; one that was asked for by
name is an error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dualform.errors import ModelError
from dualform.models.blocks import find_blocks
from dualform.models.edit import key_value_rows, mlp_rows, value_rows
from dualform.models.language_model import LanguageModel
from dualform.models.readers import find_readers
from dualform.models.stepping import require_editable_outputs, require_separable
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.fold_settings import FoldMethod

_NEEDS_FT = "it stands in for ICL or FT, and FT is impossible here."


@dataclass(frozen=True)
class Arms:
    """What a comparison of one model can run."""

    learners: tuple[str, ...]
    controls: tuple[str, ...]
    notes: tuple[str, ...]
    """What is left out, and why."""


def possible_arms(lm: LanguageModel, config: ComparisonConfig) -> Arms:
    """Learners and controls that this model allows.

    Args:
        lm: The model, with its weights; everything is possible for one without.
        config: Its settings say which arms are wanted, and which of them were asked for by name.

    Raises:
        ModelError: An arm that was asked for by name is impossible; the message names it and the reason.
    """
    if lm.route.name == "none" or lm.quantized is not None:
        # Quantized weights are a reason of their own, which the comparison states.
        return Arms(config.learners, config.controls, ())
    by_name = config.model_fields_set
    lost = _impossible(config.learners, lambda name: check_learner(lm, name, config.fold.method))
    _refuse(lost, "learner", "learners" in by_name, "--learners", config.learners)
    controls = config.controls
    impossible: dict[str, str] = dict.fromkeys(controls, _NEEDS_FT)
    if "ft" not in lost:
        impossible = _impossible(controls, lambda name: check_control(lm, name))
    _refuse(impossible, "control", "controls" in by_name and bool(controls), "--controls", controls)
    if config.select in ("ft", "both") and "ft" in lost:
        raise ModelError(f"select {config.select} chooses by FT, which is impossible here: {lost['ft']}")
    notes = [f"Left out: {name}, and the measures that need it: {reason}" for name, reason in lost.items()]
    if "ft" not in lost:
        notes += [f"Left out: the control {name}: {reason}" for name, reason in impossible.items()]
        if (missing := lm.anatomy.without("W_O")) and "ft" in config.learners:
            notes.append(f"Left out: SimAOU, which compares attention outputs: {_shortened(missing)}.")
    if lm.anatomy.left_out:
        n = len(lm.anatomy.layers)
        shown = "No attention can be recorded" if n == 0 else f"Layers here are the {n} attention layers {_places(lm)}"
        notes.append(f"{shown}; left out: {_shortened(lm.anatomy.left_out)}.")
    return Arms(
        tuple(name for name in config.learners if name not in lost),
        tuple(name for name in controls if name not in impossible),
        tuple(notes),
    )


def check_learner(lm: LanguageModel, name: str, fold: FoldMethod = "ridge") -> None:
    """Check that a learner can be run with this model.

    Raises:
        ModelError: It cannot.
    """
    if name == "ft":
        key_value_rows(lm.model, lm.anatomy)
    elif name == "lora":
        lm.anatomy.require_layers("LoRA")
        if missing := lm.anatomy.without("W_Q", "W_V"):
            raise ModelError(f"W_Q and W_V were not found everywhere ({_shortened(missing)})")
    elif name == "fold":
        check_fold_method(lm, fold)


def check_fold_method(lm: LanguageModel, method: FoldMethod) -> None:
    """Check that a prompt can be folded into this model by a method.

    Raises:
        ModelError: It cannot.
    """
    if method == "ridge":
        require_editable_outputs(lm)
        require_separable(lm, find_blocks(lm.model, lm.anatomy))
    elif method == "thought-vector":
        require_editable_outputs(lm)
    elif method in ("thought-matrix", "rank-one"):
        require_editable_outputs(lm)
        find_readers(lm.model, lm.anatomy)
    elif method == "task-vector":
        find_blocks(lm.model, lm.anatomy)
    elif method == "mezo":
        key_value_rows(lm.model, lm.anatomy)
    elif method == "kv-momentum":
        lm.anatomy.require_layers("KV momentum")


def check_control(lm: LanguageModel, name: str) -> None:
    """Check that a control can be made from this model.

    Raises:
        ModelError: It cannot.
    """
    if name == "lcgd":
        find_blocks(lm.model, lm.anatomy)
    elif name == "value_one_layer":
        value_rows(lm.model, lm.anatomy, len(lm.anatomy.layers) // 2)
    elif name == "mlp":
        mlp_rows(lm.model, lm.anatomy)


def _impossible(names: Iterable[str], check: Callable[[str], None]) -> dict[str, str]:
    """Those that a check refuses, with its reason."""
    found = {}
    for name in names:
        try:
            check(name)
        except ModelError as error:
            found[name] = str(error).rstrip(".") + "."
    return found


def _refuse(lost: dict[str, str], kind: str, by_name: bool, option: str, wanted: tuple[str, ...]) -> None:
    if not (lost and by_name):
        return
    rest = ",".join(name for name in wanted if name not in lost) or ("none" if kind == "control" else "zsl,icl")
    reasons = "; ".join(f"{kind} {name} is impossible with this model: {reason}" for name, reason in lost.items())
    raise ModelError(f"{reasons} Use {option} {rest}.")


def _places(lm: LanguageModel) -> str:
    blocks = list(dict.fromkeys(layer.block for layer in lm.anatomy.layers if layer.block is not None))
    return "at blocks " + ", ".join(map(str, blocks)) if blocks else "outside any list of blocks"


def _shortened(words: tuple[str, ...], most: int = 4) -> str:
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {more} more" if more > 0 else "")
