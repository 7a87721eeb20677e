"""Momentum in a model that was trained without it: at inference only, and after a short finetuning.

Texts are divided into windows, which are runs of consecutive tokens of equal length. Eta is the decay of momentum for
each token; 0 is the model without momentum.
"""

import functools
import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.errors import ConfigError, TaskError
from dualform.lab.sources import TextSource, find_source
from dualform.lab.training import Training, fit
from dualform.models.editing.momentum import apply_momentum, momentum, momentum_of
from dualform.models.loading.load import load_model
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.tokens import TextTokenizer
from dualform.ops.streams import stream, stream_seed
from dualform.studies.experiment import weights_digest
from dualform.studies.momentum.config import MomentumConfig
from dualform.studies.momentum.result import PretrainedMomentum
from dualform.studies.pieces import Piece, PieceStore
from dualform.studies.seed_statistics import over_seeds, paired_difference

LENGTH = 256
"""Tokens of a window for finetuning and perplexity; fewer if the model has fewer positions."""
WINDOWS_TESTED = 64
"""Largest number of windows of the test text."""
WINDOWS_A_STEP = 2
"""Windows in each training step."""
_RATE = 1e-5
"""Learning rate of AdamW for all weights: small, because the model is already trained."""


def require_usable(config: MomentumConfig, name: str) -> tuple[str, ...]:
    """Check that a model can be loaded and that each text fills at least one window of its tokens.

    Returns:
        Notes from loading the model (see `LanguageModel.notes`).

    Raises:
        DualformError: If the model cannot be used or a text is too short.
    """
    lm = load_model(name, device=config.device)
    if momentum_of(lm.model) is not None:
        raise ConfigError(f"{name} was saved with momentum: name a model that was trained without it")
    for source in (_test(config), *([_corpus(config)] if config.pretrained_steps else [])):
        n = 0
        for ids in _tokens(lm, source):
            n += len(ids)
            if n >= window_tokens(lm):
                break
        else:
            raise _too_short(lm, source, n)
    return lm.notes


def put_into(
    config: MomentumConfig,
    name: str,
    pieces: PieceStore,
    advance: Callable[[float, str], None] = lambda amount, doing: None,
) -> list[PretrainedMomentum]:
    """Perplexity on test text with and without momentum, before and after a short finetuning on the training text.

    Args:
        config: Settings of the comparison.
        name: Name of the model for `load_model`.
        pieces: Stores each computed loss, so that a killed run can continue.
        advance: Called after each finetuning with its number of steps and its name, for the progress bar.

    Returns:
        One record for each eta of the settings.
    """
    lm = load_model(name, device=config.device)
    texts = json.dumps([_test(config).identity(), _corpus(config).identity()])
    content = f"{weights_digest(lm)} {texts} {LENGTH} {config.pretrained_steps}"
    inputs = hashlib.sha256(content.encode()).hexdigest()[:16]
    test = _windows(lm, _test(config), WINDOWS_TESTED)

    @functools.cache
    def corpus() -> Tensor:
        # More windows than one finetuning reads, so that seeds differ in their windows and not only in the order.
        return _windows(lm, _corpus(config), 4 * config.pretrained_steps * WINDOWS_A_STEP)

    def loss_of(piece_name: str, make: Callable[[], float]) -> float:
        piece = pieces.get(piece_name, inputs)
        if piece is None:
            piece = Piece(piece_name, inputs, {}, {"loss": make()})
            pieces.put(piece)
        return float(piece.about["loss"])

    def tuned_losses(eta: float) -> list[float]:
        if not config.pretrained_steps:
            return []
        losses = []
        for seed in config.seeds:
            piece_name = f"{name}, eta {eta}, finetuned, seed {seed}"
            make = functools.partial(_finetuned_loss, config, name, eta, seed, corpus, test)
            losses.append(loss_of(piece_name, make))
            advance(float(config.pretrained_steps), piece_name)
        return losses

    base = loss_of(f"{name}, base", lambda: _loss(lm, test))
    base_tuned = tuned_losses(0.0)
    records = []
    for eta in config.pretrained_etas:

        def with_momentum(eta: float = eta) -> float:
            with momentum(lm.model, eta):
                return _loss(lm, test)

        at_inference = loss_of(f"{name}, eta {eta}", with_momentum)
        tuned = tuned_losses(eta)
        records.append(
            PretrainedMomentum(
                model=name,
                eta=eta,
                perplexity=math.exp(at_inference),
                base=math.exp(base),
                tuned=over_seeds([math.exp(loss) for loss in tuned]) if tuned else None,
                base_tuned=over_seeds([math.exp(loss) for loss in base_tuned]) if tuned else None,
                difference=paired_difference(config.seeds, tuned, base_tuned) if tuned else None,
            )
        )
    return records


def _test(config: MomentumConfig) -> TextSource:
    return find_source(config.test, split="test")


def _corpus(config: MomentumConfig) -> TextSource:
    return find_source(config.corpus)


def _tokens(lm: LanguageModel, source: TextSource) -> Iterator[tuple[int, ...]]:
    """Token ids of each document.

    Raises:
        ModelError: If a document contains a token for which the model has no embedding.
    """
    tokens = TextTokenizer(lm.tokenizer, lm.model, lm.name)
    for document in source.documents():
        ids = tokens.encode_plain(document)
        tokens.require_rows(ids, source.display_name)
        yield ids


def window_tokens(lm: LanguageModel) -> int:
    """Tokens of a window, without the opening tokens of the model."""
    length = LENGTH if lm.max_positions is None else min(LENGTH, lm.max_positions)
    return length - len(lm.opening)


def _too_short(lm: LanguageModel, source: TextSource, n: int) -> TaskError:
    return TaskError(
        f"{source.display_name} has {n} tokens of {lm.name}; at least {window_tokens(lm)} are needed. Give more text."
    )


def _windows(lm: LanguageModel, source: TextSource, n: int) -> Tensor:
    """At most `n` evenly spaced windows of a text, each after the opening tokens, `(window, token)`.

    Raises:
        TaskError: If the text is shorter than one window.
    """
    ids = array("i")
    for document in _tokens(lm, source):
        ids.extend(document)
    opening = lm.opening
    own = window_tokens(lm)
    n = min(n, len(ids) // own)
    if not n:
        raise _too_short(lm, source, len(ids))
    starts = np.linspace(0, len(ids) - own, n).astype(int)
    return torch.tensor([[*opening, *ids[start : start + own]] for start in starts])


@torch.no_grad()
def _loss(lm: LanguageModel, windows: Tensor) -> float:
    """Mean loss per predicted token in nats."""
    return sum(float(_nats(lm, window[None])) for window in windows) / (windows[:, 1:].numel())


def _nats(lm: LanguageModel, windows: Tensor) -> Tensor:
    """Summed loss of all predicted tokens in nats."""
    windows = windows.to(lm.device)
    logits = lm.model(input_ids=windows, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    return F.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum")


def _finetuned_loss(
    config: MomentumConfig, name: str, eta: float, seed: int, corpus: Callable[[], Tensor], test: Tensor
) -> float:
    """Loss on the test windows after a short finetuning of all weights, with momentum from the first step on."""
    lm = load_model(name, device=config.device)
    if eta:
        apply_momentum(lm.model, eta)
    windows = corpus()
    order = torch.randperm(len(windows), generator=stream("order", seed))

    def loss(step: int) -> Tensor:
        places = [int(order[i % len(order)]) for i in range(step * WINDOWS_A_STEP, (step + 1) * WINDOWS_A_STEP)]
        batch = windows[places]
        return _nats(lm, batch) / batch[:, 1:].numel()

    # Dropout, if the model has any, is seeded too, equally with and without momentum.
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(stream_seed("dropout", seed))
        fit(
            lm.model.train().parameters(),
            loss,
            Training(config.pretrained_steps, learning_rate=_RATE, warmup=0.0, final=1.0),
            models=[f"{name} with eta {eta}, seed {seed}"],
            remedy="Leave the model out of --pretrained, or use fewer --pretrained-steps.",
        )
    lm.model.eval()
    return _loss(lm, test)
