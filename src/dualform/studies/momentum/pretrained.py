"""Momentum put into a model that was trained without: at inference only, and after a short finetune."""

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
"""Tokens of a window, for finetuning and for perplexity; fewer where the model has fewer positions."""
WINDOWS_TESTED = 64
WINDOWS_A_STEP = 2
_RATE = 1e-5
"""AdamW's, of all weights: small, since the model has been trained before."""


def require_usable(config: MomentumConfig, name: str) -> tuple[str, ...]:
    """Check that a model can be loaded and that the texts fill a window of its tokens.

    Returns:
        The notes of loading it, see `LanguageModel.notes`.

    Raises:
        DualformError: What is wrong with which.
    """
    lm = load_model(name, device=config.device)
    if momentum_of(lm.model) is not None:
        raise ConfigError(f"{name} was saved with momentum: name a model that was trained without")
    for source in (_test(config), *([_corpus(config)] if config.pretrained_steps else [])):
        n = 0
        for ids in _tokens(lm, source):
            n += len(ids)
            if n >= own_tokens(lm):
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
    """Perplexity of test text with momentum and without, before and after a short finetune on the training text.

    Args:
        config: Texts, etas, seeds, steps.
        name: The model, as `load_model` takes it.
        pieces: Keeps each finished run.
        advance: Told the finetuning steps done, and of what.
    """
    lm = load_model(name, device=config.device)
    texts = json.dumps([_test(config).identity(), _corpus(config).identity()])
    read = f"{weights_digest(lm)} {texts} {LENGTH} {config.pretrained_steps}"
    inputs = hashlib.sha256(read.encode()).hexdigest()[:16]
    test = _windows(lm, _test(config), WINDOWS_TESTED)

    @functools.cache
    def corpus() -> Tensor:
        # More windows than are read, so that seeds read others and not only in another order.
        return _windows(lm, _corpus(config), 4 * config.pretrained_steps * WINDOWS_A_STEP)

    def loss_of(piece_name: str, make: Callable[[], float]) -> float:
        piece = pieces.get(piece_name, inputs)
        if piece is None:
            piece = Piece(piece_name, inputs, {}, {"loss": make()})
            pieces.put(piece)
        return float(piece.about["loss"])

    def tuned(eta: float) -> list[float]:
        if not config.pretrained_steps:
            return []
        found = []
        for seed in config.seeds:
            piece_name = f"{name}, eta {eta}, finetuned, seed {seed}"
            make = functools.partial(_finetuned, config, name, eta, seed, corpus, test)
            found.append(loss_of(piece_name, make))
            advance(float(config.pretrained_steps), piece_name)
        return found

    base = loss_of(f"{name}, base", lambda: _loss(lm, test))
    base_tuned = tuned(0.0)
    records = []
    for eta in config.pretrained_etas:

        def with_momentum(eta: float = eta) -> float:
            with momentum(lm.model, eta):
                return _loss(lm, test)

        at_inference = loss_of(f"{name}, eta {eta}", with_momentum)
        own = tuned(eta)
        records.append(
            PretrainedMomentum(
                model=name,
                eta=eta,
                perplexity=math.exp(at_inference),
                base=math.exp(base),
                tuned=over_seeds([math.exp(loss) for loss in own]) if own else None,
                base_tuned=over_seeds([math.exp(loss) for loss in base_tuned]) if own else None,
                difference=paired_difference(config.seeds, own, base_tuned) if own else None,
            )
        )
    return records


def _test(config: MomentumConfig) -> TextSource:
    return find_source(config.test, split="test")


def _corpus(config: MomentumConfig) -> TextSource:
    return find_source(config.corpus)


def _tokens(lm: LanguageModel, source: TextSource) -> Iterator[tuple[int, ...]]:
    """Each document's.

    Raises:
        ModelError: A document holds a token that the model has no embedding for.
    """
    tokens = TextTokenizer(lm.tokenizer, lm.model, lm.name)
    for document in source.documents():
        ids = tokens.encode_plain(document)
        tokens.require_rows(ids, source.shown)
        yield ids


def own_tokens(lm: LanguageModel) -> int:
    """Tokens of a window, the opening one not counted."""
    length = LENGTH if lm.max_positions is None else min(LENGTH, lm.max_positions)
    return length - len(lm.opening)


def _too_short(lm: LanguageModel, source: TextSource, n: int) -> TaskError:
    return TaskError(f"{source.shown} holds {n} tokens of {lm.name}, and {own_tokens(lm)} are needed. Give more text.")


def _windows(lm: LanguageModel, source: TextSource, n: int) -> Tensor:
    """At most `n` windows of a text, evenly spread, opening token in front, `(window, token)`.

    Raises:
        TaskError: The text is shorter than one of them.
    """
    ids = array("i")
    for document in _tokens(lm, source):
        ids.extend(document)
    opening = lm.opening
    own = own_tokens(lm)
    n = min(n, len(ids) // own)
    if not n:
        raise _too_short(lm, source, len(ids))
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


def _finetuned(
    config: MomentumConfig, name: str, eta: float, seed: int, corpus: Callable[[], Tensor], test: Tensor
) -> float:
    """Loss on the test windows after a short finetune of all weights, with momentum from its first step on."""
    lm = load_model(name, device=config.device)
    if eta:
        apply_momentum(lm.model, eta)
    windows = corpus()
    order = torch.randperm(len(windows), generator=stream("order", seed))

    def loss(step: int) -> Tensor:
        places = [int(order[i % len(order)]) for i in range(step * WINDOWS_A_STEP, (step + 1) * WINDOWS_A_STEP)]
        batch = windows[places]
        return _nats(lm, batch) / batch[:, 1:].numel()

    # Where the model has dropout, it is the seed's too, the same with momentum and without.
    with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
        torch.manual_seed(stream_seed("dropout", seed))
        fit(
            lm.model.train().parameters(),
            loss,
            Training(config.pretrained_steps, learning_rate=_RATE, warmup=0.0, final=1.0),
            models=[f"{name} with eta {eta}, seed {seed}"],
            remedy="Leave the model out of --pretrained, or take fewer --pretrained-steps.",
        )
    lm.model.eval()
    return _loss(lm, test)
