"""Momentum put into a model that was trained without: at inference only, and after a short finetune."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.errors import TaskError
from dualform.lab.sources import find_source
from dualform.models.language_model import LanguageModel
from dualform.models.load import load_model
from dualform.models.momentum import apply_momentum, momentum
from dualform.result import PretrainedMomentum
from dualform.studies.momentum_config import MomentumConfig
from dualform.studies.momentum_statistics import over_seeds, paired
from dualform.studies.pieces import Cells, Piece

LENGTH = 256
"""Tokens of a window, for finetuning and for perplexity."""
_WINDOWS_TESTED = 64
_WINDOWS_A_STEP = 2
_RATE = 1e-5
"""AdamW's, of all weights: small, since the model has been trained before."""


def put_into(
    config: MomentumConfig, name: str, cells: Cells, advance: Callable[[float, str], None] = lambda amount, doing: None
) -> list[PretrainedMomentum]:
    """Perplexity of test text with momentum and without, before and after a short finetune on the training text.

    Args:
        config: Texts, etas, seeds, steps.
        name: The model, as `load_model` takes it.
        cells: Keeps each finished run.
        advance: Told the finetuning steps done, and of what.
    """
    lm = load_model(name, device=config.device)
    inputs = f"{name} {LENGTH} {config.pretrained_steps}"
    test = _windows(lm, config.test, _WINDOWS_TESTED)

    def loss_of(piece_name: str, make: Callable[[], float]) -> float:
        piece = cells.get(piece_name, inputs)
        if piece is None:
            piece = Piece(piece_name, inputs, {}, {"loss": make()})
            cells.put(piece)
        return float(piece.about["loss"])

    def tuned(eta: float) -> list[float]:
        if not config.pretrained_steps:
            return []
        found = []
        for seed in config.seeds:
            told = f"{name}, eta {eta:g}, finetuned, seed {seed}"
            found.append(loss_of(told, lambda seed=seed: _finetuned(config, name, eta, seed, test)))  # type: ignore[misc]
            advance(float(config.pretrained_steps), told)
        return found

    base = loss_of(f"{name}, base", lambda: _loss(lm, test))
    base_tuned = tuned(0.0)
    records = []
    for eta in config.pretrained_etas:

        def with_momentum(eta: float = eta) -> float:
            with momentum(lm.model, eta):
                return _loss(lm, test)

        at_inference = loss_of(f"{name}, eta {eta:g}", with_momentum)
        own = tuned(eta)
        records.append(
            PretrainedMomentum(
                model=name,
                eta=eta,
                perplexity=math.exp(at_inference),
                base=math.exp(base),
                tuned=over_seeds([math.exp(loss) for loss in own]) if own else None,
                base_tuned=over_seeds([math.exp(loss) for loss in base_tuned]) if own else None,
                difference=paired(config.seeds, own, base_tuned) if own else None,
            )
        )
    return records


def _windows(lm: LanguageModel, where: tuple[str, ...], n: int) -> Tensor:
    """Windows of a text, evenly spread, opening token in front, `(window, token)`.

    Raises:
        TaskError: The text is shorter than one of them.
    """
    source = find_source(where)
    ids: list[int] = []
    for document in source.documents():
        ids += lm.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    opening = [] if lm.bos is None else [lm.bos]
    own = LENGTH - len(opening)
    n = min(n, len(ids) // own)
    if not n:
        raise TaskError(f"{source.shown} holds {len(ids)} tokens of {lm.name}, and {own} are needed. Give more text.")
    starts = np.linspace(0, len(ids) - own, n).astype(int)
    return torch.tensor([[*opening, *ids[start : start + own]] for start in starts])


@torch.no_grad()
def _loss(lm: LanguageModel, windows: Tensor) -> float:
    """Nats a token."""
    return sum(float(_nats(lm, window[None])) for window in windows) / (windows[:, 1:].numel())


def _nats(lm: LanguageModel, windows: Tensor) -> Tensor:
    windows = windows.to(lm.device)
    logits = lm.model(input_ids=windows, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum")


def _finetuned(config: MomentumConfig, name: str, eta: float, seed: int, test: Tensor) -> float:
    """Loss on the test windows after a short finetune of all weights, with momentum from its first step on."""
    lm = load_model(name, device=config.device)
    if eta:
        apply_momentum(lm.model, eta)
    n = config.pretrained_steps * _WINDOWS_A_STEP
    windows = _windows(lm, config.corpus, max(n, 4 * n))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    optimiser = torch.optim.AdamW(lm.model.parameters(), lr=_RATE, weight_decay=0.0)
    lm.model.train()
    for step in range(config.pretrained_steps):
        places = [int(order[i % len(order)]) for i in range(step * _WINDOWS_A_STEP, (step + 1) * _WINDOWS_A_STEP)]
        batch = windows[places]
        (_nats(lm, batch) / batch[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(lm.model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    lm.model.eval()
    return _loss(lm, test)
