"""The learners and controls that a model allows, checked before anything is computed.

One that is impossible is left out with a note if it comes from the default settings, and is an error if it was
requested by name.
"""

from dataclasses import dataclass

from dualform.errors import ModelError
from dualform.learners.base import LEARNERS
from dualform.models.reading.language_model import WITHOUT_WEIGHTS, LanguageModel
from dualform.plain_text import first_few
from dualform.studies.comparison.config import FINETUNED, ComparisonConfig
from dualform.studies.controls import CONTROLS
from dualform.studies.learner_training import refused

_NEEDS_FT = "it is compared with FT, which is impossible with this model."


@dataclass(frozen=True)
class Arms:
    """The learners and controls that a comparison can run."""

    learners: tuple[str, ...]
    controls: tuple[str, ...]
    notes: tuple[str, ...]
    """What is left out and why."""


def possible_arms(lm: LanguageModel, config: ComparisonConfig) -> Arms:
    """Learners and controls that this model allows.

    Args:
        lm: The model. Without weights (for a plan) or with quantized weights, nothing is left out.
        config: The settings, which know what was requested by name.

    Raises:
        ModelError: A learner or control that was requested by name is impossible; the message gives the reason.
    """
    if lm.route.name == WITHOUT_WEIGHTS or lm.quantized is not None:
        # `set_up` leaves out learners that quantized weights do not allow.
        return Arms(config.learners, config.controls, ())
    by_name = config.model_fields_set
    no_learners = refused(config.learners, lambda name: LEARNERS[name].check(lm, config))
    _require_possible(no_learners, "learner", "learners" in by_name, "--learners", config.learners)
    controls = config.controls
    no_controls: dict[str, str] = dict.fromkeys(controls, _NEEDS_FT)
    if FINETUNED not in no_learners:
        no_controls = refused(controls, lambda name: CONTROLS[name].check(lm))
    _require_possible(no_controls, "control", "controls" in by_name and bool(controls), "--controls", controls)
    for name in config.selecting:
        if name in no_learners:
            raise ModelError(
                f"select {config.select} chooses by {name.upper()}, which is impossible with this model: "
                f"{no_learners[name]}"
            )
    notes = [f"Left out: {name}, and the measures that need it: {reason}" for name, reason in no_learners.items()]
    if FINETUNED not in no_learners:
        notes += [f"Left out: the control {name}: {reason}" for name, reason in no_controls.items()]
        if (missing := lm.anatomy.missing_projections("W_O")) and FINETUNED in config.learners:
            notes.append(f"Left out: SimAOU, which compares attention outputs: {first_few(missing)}.")
    if lm.anatomy.left_out:
        n = len(lm.anatomy.layers)
        layers = "No attention can be recorded" if n == 0 else f"Layers here are the {n} attention layers {_places(lm)}"
        notes.append(f"{layers}; left out: {first_few(lm.anatomy.left_out)}.")
    return Arms(
        tuple(name for name in config.learners if name not in no_learners),
        tuple(name for name in controls if name not in no_controls),
        tuple(notes),
    )


def _require_possible(
    impossible: dict[str, str], kind: str, by_name: bool, option: str, requested: tuple[str, ...]
) -> None:
    if not (impossible and by_name):
        return
    rest = ",".join(name for name in requested if name not in impossible)
    rest = rest or ("none" if kind == "control" else "zsl,icl")
    reasons = "; ".join(f"{kind} {name} is impossible with this model: {reason}" for name, reason in impossible.items())
    raise ModelError(f"{reasons} Use {option} {rest}.")


def _places(lm: LanguageModel) -> str:
    blocks = list(dict.fromkeys(layer.block for layer in lm.anatomy.layers if layer.block is not None))
    return "at blocks " + ", ".join(map(str, blocks)) if blocks else "outside any list of blocks"
