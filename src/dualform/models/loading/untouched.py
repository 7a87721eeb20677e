"""The reference for self-checks: the model's own forward in transformers, before dualform changes anything.

A few short prompts are run in the model's own attention implementation. They contain ids of every kind: ordinary and
repeated ones, the first and last of the vocabulary, padding and other special tokens. The outputs show whether the
model is causal. The naive route is compared with them, and every faster route with the naive one.
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
from dualform.models.reading.attention import ADDED_TERM, NAME, REPLACED_ATTENTION
from dualform.models.reading.cached import NaiveRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.forward import KeysValues, forward_rows
from dualform.models.reading.layout import Query, lay_out
from dualform.models.reading.switch_lengths import text_config
from dualform.models.structure.anatomy import Anatomy, is_linear
from dualform.models.structure.probing import n_ids, ordinary_ids
from dualform.ops.rounding import at_least_float32

_OWN = "dualform_own_attention"
"""Attribute of a model that stores its attention implementation from before dualform's was set."""

_SPECIAL = ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id", "sep_token_id", "cls_token_id")
_MOST_SPECIAL = 12
"""Most special tokens in a prompt; a chat model may have hundreds."""


@dataclass(frozen=True)
class UntouchedForward:
    """The output of the model's own forward for one prompt."""

    tokens: tuple[int, ...]
    log_probabilities: Tensor = field(repr=False)
    """Log-probabilities of the next token, at least float32, at all positions or the last, `(pos or 1, vocab)`."""
    inputs: dict[str, list[Tensor]] = field(repr=False)
    """Name of a linear -> its input at the last position, `(d_in,)`, one entry a call; empty if all positions are
    kept."""

    @property
    def split(self) -> tuple[tuple[int, ...], Query]:
        """The tokens as a prefix and a query, chosen so that the query's scored positions have log-probabilities."""
        if len(self.log_probabilities) == 1:
            return self.tokens[:-1], Query(self.tokens[-1:], ())
        # The second half is a one-token prompt and its answer, so all positions from that prompt on are scored.
        n_prefix = len(self.tokens) // 2
        return self.tokens[:n_prefix], Query(self.tokens[n_prefix : n_prefix + 1], (self.tokens[n_prefix + 1 :],))

    @property
    def scored(self) -> Tensor:
        """Log-probabilities at the query's scored positions, `(scored, vocab)`."""
        prefix, query = self.split
        return self.log_probabilities[len(prefix) : -1] if query.answers else self.log_probabilities


@dataclass(frozen=True)
class UntouchedOutput:
    """Outputs of the model's own forward for all prompts."""

    implementation: str
    """Attention implementation in use: `sdpa`, `eager`, ...; `dualform` if the model's attention is dualform's."""
    forwards: tuple[UntouchedForward, ...]
    causality: float
    """Largest change of an earlier token's logits when the last token changes, relative to the largest logit."""
    skipped: tuple[str, ...] = ()
    """Prompts for which the model's own forward fails, with the reason."""


def special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[int, ...]:
    """Ids that a model may treat differently from others: special tokens, the first ids and the last one.

    Args:
        model: Provides special tokens in its config, and the number of ids.
        tokenizer: Provides further special tokens.

    Returns:
        Distinct ids that the embedding has a row for, padding first.
    """
    size = n_ids(model)
    config = text_config(model.config)
    candidates: list[Any] = [getattr(config, name, None) for name in _SPECIAL]
    if tokenizer is not None:
        candidates += [getattr(tokenizer, name, None) for name in _SPECIAL]
        candidates += list(getattr(tokenizer, "all_special_ids", ()))[:_MOST_SPECIAL]
        candidates.append(len(tokenizer) - 1)
    candidates += [0, 1, 2, 3, size - 1]
    ids: dict[int, None] = {}
    for candidate in candidates:
        for token in candidate if isinstance(candidate, list | tuple) else (candidate,):
            if isinstance(token, int) and 0 <= token < size:
                ids.setdefault(token)
    return tuple(ids)


def read_untouched(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, lengths: Sequence[int] = ()
) -> UntouchedOutput:
    """Run a few prompts through the model's own forward, and check that it is causal.

    Args:
        model: In evaluation mode. If dualform's attention is set, the earlier implementation is used inside this call.
        tokenizer: Provides special tokens.
        lengths: Lengths, in tokens, of further prompts, such as ones that exceed a sliding window.

    Returns:
        Log-probabilities and inputs of all linears, for `compare_with_untouched`.

    Raises:
        ModelError: The forward fails, or earlier tokens attend to later ones.
        NumericalError: Weights or logits are NaN or infinite.
    """
    specials = special_ids(model, tokenizer)[: 2 * _MOST_SPECIAL]
    ordinary = ordinary_ids(model, len(specials) + 6)
    # `plain` has one id three times; `mixed` alternates special and ordinary ids.
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
    before, after = (forward.log_probabilities[:-1].double() for forward in (whole, changed))
    largest = before.abs().amax().clamp(min=1e-9)
    causality = float(torch.where(before == after, 0.0, (before - after).abs()).max() / largest)
    if not causality < difference_allowed(model):
        raise ModelError(
            f"{type(model).__name__} is not causal: changing the last token changes log-probabilities at earlier "
            f"tokens by up to {causality * float(largest):.2g} nats. It is an encoder or has bidirectional attention "
            "(see is_decoder, is_causal or use_bidirectional_attention in its config.json). Choose a causal language "
            "model."
        )
    return UntouchedOutput(implementation, (whole, *last), causality, tuple(skipped))


def compare_with_untouched(model: PreTrainedModel, anatomy: Anatomy, untouched: UntouchedOutput) -> float:
    """Compare the naive route with the model's own forward.

    Args:
        model: The model after `find_anatomy`.
        anatomy: Its anatomy.
        untouched: From `read_untouched`.

    Returns:
        Largest difference, relative to the largest entry of each tensor.

    Raises:
        ModelError: Log-probabilities or inputs of W_O differ by more than rounding.
    """
    naive = NaiveRoute(model, anatomy)
    family, allowed = type(model).__name__, difference_allowed(model)
    worst = 0.0
    names = {layer.W_O for layer in anatomy.layers if layer.W_O is not None}
    for forward in untouched.forwards:
        prefix, query = forward.split
        layout = lay_out([query], device=input_device(model))
        with _record_last_inputs(model, names) as inputs:
            try:
                # The naive route reads the prefix with the query, so it need not be encoded first.
                logits, _, _ = naive.read(KeysValues((), prefix), [query], layout, Recording())
            except Exception as error:
                raise ModelError(f"{family} cannot be read on the naive route: {type_and_first_line(error)}") from error
        actual = torch.log_softmax(at_least_float32(logits), dim=-1)
        expected = forward.scored.to(actual.device)
        difference = _relative_difference(expected, actual)
        if not difference <= allowed:
            raise ModelError(
                f"{family}: log-probabilities with dualform's attention differ from those of the model's own forward "
                f"({untouched.implementation}, {len(forward.tokens)} tokens) by up to "
                f"{_largest_difference_in_nats(expected, actual):.2g} nats. dualform does not support this model "
                "family. Choose another model, or report this family."
            )
        worst = max(worst, difference)
        for name in sorted(names):
            for own, recorded in zip(forward.inputs.get(name, ()), inputs.get(name, ()), strict=False):
                difference = _relative_difference(own, recorded)
                if not difference <= allowed:
                    raise ModelError(
                        f"{family}: with dualform's attention, the input of {name} differs from that in the model's "
                        f"own forward ({untouched.implementation}) by {difference:.1e} of its largest entry. dualform "
                        "does not support this model family. Choose another model, or report this family."
                    )
                worst = max(worst, difference)
    return worst


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[str]:
    """Use the model's own attention implementation inside the block.

    Yields:
        Name of the implementation.
    """
    current = attention_implementation(model) or "eager"
    if any(hasattr(module, name) for module in model.modules() for name in (ADDED_TERM, REPLACED_ATTENTION)):
        # This model's own attention is computed by dualform (momentum, for example).
        if current == NAME and not _supports_dualform_attention(model):
            # The family passes arguments that dualform's function does not support, so its eager code is used.
            model.set_attn_implementation("eager")
            current = "eager"
        yield current
        return
    if current != NAME:
        # Remembered in case the model is wrapped again after its attention has been replaced.
        if not hasattr(model, _OWN):
            setattr(model, _OWN, current)
        yield current
        return
    own = _set_own_attention(model)
    try:
        yield own
    finally:
        model.set_attn_implementation(NAME)


def _supports_dualform_attention(model: PreTrainedModel) -> bool:
    """Whether dualform's attention function supports the arguments that this family passes."""
    ids = torch.tensor([ordinary_ids(model, 2)], device=input_device(model))
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except ModelError:
        return False
    return True


def _set_own_attention(model: PreTrainedModel) -> str:
    """Set the implementation from before dualform's, or else `sdpa` or `eager`."""
    known = getattr(model, _OWN, None)
    for name in dict.fromkeys((known, "sdpa", "eager")):
        if name is None:
            continue
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError):
            # Not every family supports `sdpa`.
            continue
        return str(name)
    raise ModelError(f"{type(model).__name__}: none of its attention implementations can be set.")


def difference_allowed(model: PreTrainedModel) -> float:
    """Largest relative difference that counts as rounding: 400 times the precision of the dtype, at most 0.05.

    The cap matters in half precision, where correct routes differed by up to 0.02 and wrong ones by 0.13 or more. For
    float64 models the precision is that of float32, in which many families compute norms and softmax. Quantized models
    get the tolerance of bfloat16, because 8-bit products round their inputs too.
    """
    dtype = torch.bfloat16 if precision_of(model) is not None else model.dtype
    return min(400 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps), 0.05)


def _forward(model: PreTrainedModel, tokens: Sequence[int], last_only: bool = False) -> UntouchedForward:
    ids = torch.tensor([list(tokens)], device=input_device(model))
    linears = [name for name, module in model.named_modules() if last_only and is_linear(module)]
    with _record_last_inputs(model, linears) as inputs:
        try:
            if last_only:
                logits, _ = forward_rows(model, ids.new_tensor([len(tokens) - 1]), input_ids=ids, use_cache=False)
            else:
                logits = model(input_ids=ids, use_cache=False).logits[0]
        except DualformError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__}: the model's own forward fails on {len(tokens)} tokens "
                f"({type_and_first_line(error)}). Check the checkpoint's config.json."
            ) from error
    log_probabilities = torch.log_softmax(at_least_float32(logits), dim=-1)
    if not _is_finite(log_probabilities):
        raise NumericalError(_describe_non_finite(model))
    return UntouchedForward(tuple(tokens), log_probabilities, inputs)


@contextmanager
def _record_last_inputs(model: PreTrainedModel, linears: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the inputs of linears at the last token of a single row, one vector for each call."""
    inputs: dict[str, list[Tensor]] = {}

    def record(name: str, x: Tensor | None) -> None:
        if x is None:
            # The input was passed as a keyword argument.
            return
        rows = x.detach().reshape(-1, x.shape[-1])
        # An expert may receive no token.
        if len(rows):
            inputs.setdefault(name, []).append(rows[-1].clone())

    with Hooks(model) as hooks:
        for name in linears:
            hooks.before(name, partial(record, name))
        yield inputs


def _is_finite(log_probabilities: Tensor) -> bool:
    """Whether nothing is NaN or infinite, except for tokens that have probability 0 at every position."""
    if torch.isnan(log_probabilities).any():
        return False
    excluded = torch.isneginf(log_probabilities)
    return bool((excluded.all(dim=0) | ~excluded.any(dim=0)).all())


def _describe_non_finite(model: PreTrainedModel) -> str:
    dtype = str(model.dtype).removeprefix("torch.")
    family = type(model).__name__
    for name, weight in named_weights(model):
        if weight.is_meta or not weight.is_floating_point():
            continue
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            return (
                f"{family}: {bad} of {weight.numel()} numbers in {name} are NaN or infinite in {dtype}, so every "
                "result would be too. The checkpoint is damaged, or its weights are too large for this dtype: load it "
                "with --dtype float32, or download it again."
            )
    wider = "--dtype float32 (or bfloat16, which has the same range)" if dtype == "float16" else "--dtype float64"
    return (
        f"{family} in {dtype}: the weights are finite, but log-probabilities are NaN or infinite: activations overflow "
        f"{dtype}. Use {wider}."
    )


def _relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Largest difference, relative to the largest finite entry; equal infinities count as equal."""
    a, b = expected.double(), actual.to(expected.device).double()
    largest = a[torch.isfinite(a)].abs().amax().clamp(min=1e-9) if torch.isfinite(a).any() else a.new_tensor(1.0)
    return float(torch.where(a == b, 0.0, (a - b).abs()).max() / largest)


def _largest_difference_in_nats(expected: Tensor, actual: Tensor) -> float:
    return float(torch.where(expected == actual, 0.0, (expected - actual).abs()).max())
