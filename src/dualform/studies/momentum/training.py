"""Training of a single model from scratch, with or without momentum."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.lab.corpus import build_corpus
from dualform.lab.cost import training_cost
from dualform.lab.pretraining import Pretrained, pretrain
from dualform.lab.recipe import Recipe
from dualform.lab.sources import find_source
from dualform.lab.tracker import Tracker
from dualform.models.editing.momentum import MomentumSettings, apply_momentum
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress

_SILENT = SilentProgress()


@ordinary_torch()
def train_alone(
    recipe: Recipe,
    corpus: Sequence[str],
    folder: Path,
    *,
    validation: Sequence[str] = (),
    eta: float = 0.0,
    learned: bool = False,
    normalised: bool = False,
    device: str = "auto",
    progress: Progress = _SILENT,
    tracker: Tracker | None = None,
) -> Pretrained:
    """Train one model, or resume its training.

    Args:
        recipe: Model and training settings.
        corpus: Text files, or one data set of the hub, of which the split `train` is read.
        folder: Folder for the text as tokens, checkpoints and losses.
        validation: Text for validation losses during training; of a data set on the hub the split `validation`.
        eta: Decay of momentum for each token, in [0, 1); 0 is vanilla attention.
        learned: Learn an eta for each head (see `apply_momentum`).
        normalised: Normalise the weights of past values (see `apply_momentum`).
        device: `auto` (a GPU if there is one) or `cpu`.
        progress: Receives the progress.
        tracker: Receives the numbers of each step.

    Raises:
        DualformError: If settings or texts are invalid.
    """
    # Mistakes are reported before any text is read.
    MomentumSettings(eta, learned, normalised)
    if normalised and eta == 0:
        raise ConfigError("normalised momentum needs an eta above 0: give one such as 0.3")
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device is {device!r}; expected auto or cpu")

    source = find_source(corpus)
    validation_source = find_source(validation, split="validation") if validation else None

    def prepare(model: PreTrainedModel) -> None:
        apply_momentum(model, eta, learned=learned, per_head=learned, normalised=normalised)

    train = build_corpus(source, folder / "corpus", recipe.vocab_size, progress=progress)
    held_out = None
    if validation_source is not None:
        held_out = build_corpus(
            validation_source, folder / "corpus", train.tokenizer, name="validation", progress=progress
        )
    return pretrain(
        recipe,
        train,
        folder,
        prepare=prepare if eta > 0 else None,
        validation=held_out,
        progress=progress,
        tracker=tracker,
        device="cpu" if device == "cpu" else "auto",
    )


_H100 = 4e14
"""Operations a second of training in bfloat16 on one H100, about 40 % of its nominal rate."""


def cost_sentences(recipe: Recipe) -> list[str]:
    """Sentences about the size and cost of a recipe."""
    cost = training_cost(recipe)
    hours = cost.flops / _H100 / 3600
    return [
        f"{cost.parameters / 1e6:,.1f} million parameters, {cost.steps:,} steps, {cost.tokens:,} tokens.",
        f"{cost.flops:.2e} floating-point operations, {cost.flops_per_token:.2e} a token; weights, gradients and "
        f"optimiser take {cost.state_bytes / 2**30:.1f} GiB on each device, without activations.",
        f"At {_H100:.0e} operations a second, about the rate of one H100 in bfloat16: {hours:,.1f} hours.",
    ]
