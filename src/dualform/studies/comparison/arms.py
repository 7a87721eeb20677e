"""Which arms of a comparison a model allows: asked before anything is computed, so that no run ends half-way.

An arm that is part of the default settings is left out where it is impossible, and named; one that was asked for by
name is an error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dualform.errors import ModelError
from dualform.learners.base import LEARNERS
from dualform.models.reading.language_model import WITHOUT_WEIGHTS, LanguageModel
from dualform.plain_text import first_few
from dualform.studies.comparison.config import FINETUNED, ComparisonConfig
from dualform.studies.controls import CONTROLS

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
    if lm.route.name == WITHOUT_WEIGHTS or lm.quantized is not None:
        # Quantized weights are a reason of their own, which the comparison states.
        return Arms(config.learners, config.controls, ())
    by_name = config.model_fields_set
    lost = _impossible(config.learners, lambda name: LEARNERS[name].check(lm, config))
    _refuse(lost, "learner", "learners" in by_name, "--learners", config.learners)
    controls = config.controls
    impossible: dict[str, str] = dict.fromkeys(controls, _NEEDS_FT)
    if FINETUNED not in lost:
        impossible = _impossible(controls, lambda name: CONTROLS[name].check(lm))
    _refuse(impossible, "control", "controls" in by_name and bool(controls), "--controls", controls)
    for name in config.selecting:
        if name in lost:
            raise ModelError(
                f"select {config.select} chooses by {name.upper()}, which is impossible here: {lost[name]}"
            )
    notes = [f"Left out: {name}, and the measures that need it: {reason}" for name, reason in lost.items()]
    if FINETUNED not in lost:
        notes += [f"Left out: the control {name}: {reason}" for name, reason in impossible.items()]
        if (missing := lm.anatomy.without("W_O")) and FINETUNED in config.learners:
            notes.append(f"Left out: SimAOU, which compares attention outputs: {first_few(missing)}.")
    if lm.anatomy.left_out:
        n = len(lm.anatomy.layers)
        shown = "No attention can be recorded" if n == 0 else f"Layers here are the {n} attention layers {_places(lm)}"
        notes.append(f"{shown}; left out: {first_few(lm.anatomy.left_out)}.")
    return Arms(
        tuple(name for name in config.learners if name not in lost),
        tuple(name for name in controls if name not in impossible),
        tuple(notes),
    )


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
