"""The model as transformers runs it, before dualform changes anything: what every reading must agree with.

A few short prompts go through the model's own forward, in its own attention implementation. They hold ids of every
kind: ordinary ones, repeated ones, the first and the last of the vocabulary, padding and the other special tokens. The
forward shows whether the model is causal at all, and its numbers are the reference for the naive reading, to which all
faster ones are compared.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualform.errors import DualformError, ModelError, NumericalError, type_and_first_line
from dualform.models.compat import attention_implementation
from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import input_device, named_weights
from dualform.models.loading.quantized import precision_of
from dualform.models.reading.attention import ATTENTION, MOMENTUM, NAME
from dualform.models.reading.cached import NaiveRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import KeysValues, forward_rows
from dualform.models.reading.layout import Query, lay_out
from dualform.models.reading.switch_lengths import text_config
from dualform.models.structure.anatomy import Anatomy, is_linear
from dualform.models.structure.probing import n_ids, ordinary_ids
from dualform.ops.rounding import at_least_float32

_OWN = "dualform_own_attention"
"""Attribute under which a model keeps the attention implementation that it had before dualform set its own."""

_SPECIAL = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
_MOST_SPECIAL = 12
"""Special tokens in a prompt; a chat model may have hundreds."""


@dataclass(frozen=True)
class UntouchedForward:
    """One prompt, read by the model's own forward."""

    tokens: tuple[int, ...]
    log_probabilities: Tensor = field(repr=False)
    """Of the next token, float32 at least: at every position, or at the last one only, `(pos or 1, vocab)`."""
    inputs: dict[str, list[Tensor]] = field(repr=False)
    """Where only the last position is kept: what each linear read there, `(d_in,)`, by the linear's name; one entry a
    call."""

    @property
    def split(self) -> tuple[tuple[int, ...], Query]:
        """The same tokens as a prefix and a query, whose scored positions have log-probabilities here."""
        if len(self.log_probabilities) == 1:
            return self.tokens[:-1], Query(self.tokens[-1:], ())
        # Behind a prefix, with an answer of several tokens: all positions from the prompt's last on are scored.
        n_prefix = len(self.tokens) // 2
        return self.tokens[:n_prefix], Query(self.tokens[n_prefix : n_prefix + 1], (self.tokens[n_prefix + 1 :],))

    @property
    def scored(self) -> Tensor:
        """Log-probabilities at the query's scored positions, `(scored, vocab)`."""
        prefix, query = self.split
        return self.log_probabilities[len(prefix) : -1] if query.answers else self.log_probabilities


@dataclass(frozen=True)
class UntouchedOutput:
    """What the model's own forward gave."""

    implementation: str
    """Attention implementation that it ran in: `sdpa`, `eager`, ...; `dualform` where attention is dualform's own."""
    forwards: tuple[UntouchedForward, ...]
    causality: float
    """Largest change of an earlier token's logits when the last token changes, relative to the largest logit."""
    skipped: tuple[str, ...] = ()
    """Prompts that the model's own forward does not take, and why."""


def special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Ids that families may treat unlike others, each once: special tokens, the first ids and the last one.

    Args:
        model: Its config names special tokens, its embedding the number of ids.
        tokenizer: Names more of them.

    Returns:
        Ids that the embedding has a row for, padding first.
    """
    size = n_ids(model)
    config = text_config(model.config)
    found: list[Any] = [getattr(config, name, None) for name in _SPECIAL]
    if tokenizer is not None:
        found += [getattr(tokenizer, name, None) for name in _SPECIAL]
        found += list(getattr(tokenizer, "all_special_ids", ()))[:_MOST_SPECIAL]
        found.append(len(tokenizer) - 1)
    found += [0, 1, 2, 3, size - 1]
    ids: dict[int, None] = {}
    for one in found:
        for token in one if isinstance(one, list | tuple) else (one,):
            if isinstance(token, int) and 0 <= token < size:
                ids.setdefault(token)
    return tuple(ids)


def read_untouched(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, lengths: Sequence[int] = ()
) -> UntouchedOutput:
    """Read a few prompts with the model's own forward, and check that it is causal.

    Args:
        model: In eval mode, as transformers loaded it. Where dualform's attention is set already, the implementation
            from before is used and set back afterwards.
        tokenizer: Names special tokens.
        lengths: Tokens of further, longer prompts, such as reach beyond a window.

    Returns:
        Log-probabilities and the inputs of all linears, to compare the naive reading with.

    Raises:
        ModelError: The forward fails, or earlier tokens attend to later ones.
        NumericalError: Weights or logits are NaN or infinite.
    """
    specials = special_ids(model, tokenizer)[: 2 * _MOST_SPECIAL]
    ordinary = ordinary_ids(model, len(specials) + 6)
    # Ordinary ids, one of them three times; then a special id between any two ordinary ones.
    plain = [*ordinary[:6], ordinary[0], ordinary[0], *ordinary[6:9]]
    mixed = [token for pair in zip(specials, ordinary, strict=False) for token in pair] + ordinary[-2:]
    skipped: list[str] = []
    with own_attention(model) as implementation, torch.no_grad():
        last = [_forward(model, plain, last_only=True)]
        try:
            whole = _forward(model, mixed)
        except ModelError as error:
            skipped.append(f"ids {list(specials)} among others: {error}")
            whole = _forward(model, plain)
        other = next(token for token in ordinary_ids(model, 50) if token not in whole.tokens[-2:])
        changed = _forward(model, [*whole.tokens[:-1], other])
        last += [_forward(model, ordinary_ids(model, length), last_only=True) for length in lengths]
    before, after = (one.log_probabilities[:-1].double() for one in (whole, changed))
    largest = before.abs().amax().clamp(min=1e-9)
    causality = float(torch.where(before == after, 0.0, (before - after).abs()).max() / largest)
    if not causality < difference_allowed(model):
        raise ModelError(
            f"{type(model).__name__} attends to later tokens: with another last token, log-probabilities at earlier "
            f"ones change by up to {causality * float(largest):.2g} nats. It is an encoder or reads in both "
            "directions, not a causal model (look for is_decoder, is_causal, use_bidirectional_attention or the like "
            "in its config.json). Choose a causal language model."
        )
    return UntouchedOutput(implementation, (whole, *last), causality, tuple(skipped))


def compare_with_untouched(model: PreTrainedModel, anatomy: Anatomy, untouched: UntouchedOutput) -> float:
    """Largest difference between the naive reading and the model's own forward.

    Args:
        model: As `find_anatomy` leaves it.
        anatomy: Its anatomy.
        untouched: From `read_untouched`.

    Returns:
        Largest difference, relative to the largest entry of each tensor.

    Raises:
        ModelError: Log-probabilities or what W_O receives differ by more than rounding.
    """
    naive = NaiveRoute(model, anatomy)
    family, allowed = type(model).__name__, difference_allowed(model)
    worst = 0.0
    names = {layer.W_O for layer in anatomy.layers if layer.W_O is not None}
    for forward in untouched.forwards:
        prefix, query = forward.split
        layout = lay_out([query], device=input_device(model))
        with _inputs_of(model, names) as inputs:
            try:
                # The row is read whole, so the prefix need not be read by itself before.
                logits, _, _ = naive.read(KeysValues((), prefix), [query], layout, Recording())
            except Exception as error:
                raise ModelError(f"{family} cannot be read on the naive route: {type_and_first_line(error)}") from error
        found = torch.log_softmax(at_least_float32(logits), dim=-1)
        expected = forward.scored.to(found.device)
        difference = _relative(expected, found)
        if not difference <= allowed:
            raise ModelError(
                f"{family}: read with dualform's attention, log-probabilities differ from those of the model's own "
                f"forward ({untouched.implementation}) of {len(forward.tokens)} tokens by up to "
                f"{_nats(expected, found):.2g} nats. Its family computes something that dualform does not know. Choose "
                "another model, or report this family."
            )
        worst = max(worst, difference)
        for name in sorted(names):
            for own, seen in zip(forward.inputs.get(name, ()), inputs.get(name, ()), strict=False):
                difference = _relative(own, seen)
                if not difference <= allowed:
                    raise ModelError(
                        f"{family}: read with dualform's attention, the input of {name} differs from that in the "
                        f"model's own forward ({untouched.implementation}) by {difference:.1e} of its largest entry. "
                        "Choose another model, or report this family."
                    )
                worst = max(worst, difference)
    return worst


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[str]:
    """A block in which the model computes attention as its family does.

    Yields:
        Name of the implementation.
    """
    current = attention_implementation(model) or "eager"
    if any(hasattr(module, name) for module in model.modules() for name in (MOMENTUM, ATTENTION)):
        # Attention of this model is dualform's own, whatever computes the rest of it.
        if current == NAME and not _is_taken(model):
            # A family that asks for more than dualform's function knows: its plain code is watched instead.
            model.set_attn_implementation("eager")
            current = "eager"
        yield current
        return
    if current != NAME:
        # Kept for those who wrap the model again, after its attention has been replaced.
        if not hasattr(model, _OWN):
            setattr(model, _OWN, current)
        yield current
        return
    own = _set_own(model)
    try:
        yield own
    finally:
        model.set_attn_implementation(NAME)


def _is_taken(model: PreTrainedModel) -> bool:
    """Whether dualform's attention function takes what this family asks of it."""
    ids = torch.tensor([ordinary_ids(model, 2)], device=input_device(model))
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except ModelError:
        return False
    return True


def _set_own(model: PreTrainedModel) -> str:
    """Set the implementation from before dualform's, else the family's fastest plain one."""
    known = getattr(model, _OWN, None)
    for name in dict.fromkeys((known, "sdpa", "eager")):
        if name is None:
            continue
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError):
            # Families without PyTorch's own function refuse it.
            continue
        return str(name)
    raise ModelError(f"{type(model).__name__}: none of its attention implementations can be set.")


def difference_allowed(model: PreTrainedModel) -> float:
    """A few hundred roundings, as many as a deep model adds up between its first layer and its last.

    In half precision so many would hide a wrong route: right ones were seen to differ by 0.02 there, wrong ones by
    0.13 and more. In double precision families still compute norms or softmax in single. Quantized weights are granted
    as much, since 8-bit products round their inputs too: a last digit there can tip an entry to the next level.
    """
    dtype = torch.bfloat16 if precision_of(model) is not None else model.dtype
    return min(400 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps), 0.05)


def _forward(model: PreTrainedModel, tokens: Sequence[int], last_only: bool = False) -> UntouchedForward:
    ids = torch.tensor([list(tokens)], device=input_device(model))
    linears = [name for name, module in model.named_modules() if last_only and is_linear(module)]
    with _inputs_of(model, linears) as inputs:
        try:
            if last_only:
                logits, _ = forward_rows(model, ids.new_tensor([len(tokens) - 1]), input_ids=ids, use_cache=False)
            else:
                logits = model(input_ids=ids, use_cache=False).logits[0]
        except DualformError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__}: the model's own forward of {len(tokens)} tokens fails "
                f"({type_and_first_line(error)}). Check the checkpoint's config.json."
            ) from error
    log_probabilities = torch.log_softmax(at_least_float32(logits), dim=-1)
    if not _usable(log_probabilities):
        raise NumericalError(_why_not_finite(model))
    return UntouchedForward(tuple(tokens), log_probabilities, inputs)


@contextmanager
def _inputs_of(model: PreTrainedModel, linears: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep what linears read at the last token of a single row, a vector for each call."""
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Tensor | None) -> None:
        if x is None:
            # The family hands the input over by its name.
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        # Experts may read no token at all.
        if len(rows):
            kept.setdefault(name, []).append(rows[-1].clone())

    with Hooks(model) as hooks:
        for name in linears:
            hooks.before(name, partial(keep, name))
        yield kept


def _usable(log_probabilities: Tensor) -> bool:
    """No NaN, and no infinity but tokens that the model rules out at every position."""
    if torch.isnan(log_probabilities).any():
        return False
    ruled_out = torch.isneginf(log_probabilities)
    return bool((ruled_out.all(dim=0) | ~ruled_out.any(dim=0)).all())


def _why_not_finite(model: PreTrainedModel) -> str:
    dtype = str(model.dtype).removeprefix("torch.")
    family = type(model).__name__
    for name, weight in named_weights(model):
        if weight.is_meta or not weight.is_floating_point():
            continue
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            return (
                f"{family}: {bad} of {weight.numel()} numbers in {name} are NaN or infinite in {dtype}, so every "
                "answer would be. The checkpoint is damaged, or its weights are too large for this dtype: load it with "
                "--dtype float32, or download it again."
            )
    wider = "--dtype float32 (or bfloat16, which reaches as far)" if dtype == "float16" else "--dtype float64"
    return (
        f"{family} in {dtype}: its weights are finite, but its log-probabilities are NaN or infinite: numbers inside "
        f"grow too large for {dtype}. Use {wider}."
    )


def _relative(expected: Tensor, found: Tensor) -> float:
    """Largest difference, relative to the largest finite entry; equal infinities count as equal."""
    a, b = expected.double(), found.to(expected.device).double()
    largest = a[torch.isfinite(a)].abs().amax().clamp(min=1e-9) if torch.isfinite(a).any() else a.new_tensor(1.0)
    return float(torch.where(a == b, 0.0, (a - b).abs()).max() / largest)


def _nats(expected: Tensor, found: Tensor) -> float:
    return float(torch.where(expected == found, 0.0, (expected - found).abs()).max())
