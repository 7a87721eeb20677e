"""A convolution over values answers to a plain sum at W_O, by every way that a model is read."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.models.editing.convolution import TAPS, ValueConvolution, apply_convolution
from dualform.models.editing.momentum import apply_momentum, momentum_of
from dualform.models.reading.attention import ADDED_TERM
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import lay_out
from dualform.models.reading.self_check import choose_route, largest_difference
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.reference import BY_NAME, PREFIX, QUERIES, Case, naive_scores
from tests.tiny import VOCABULARY, WINDOW, tiny_model, tiny_tokenizer

NAMES = ("llama", "gpt2", "gpt_neox", "gemma3", "mistral-sliding_window=16")
EVERY_NAME = pytest.mark.parametrize("name", NAMES)


def tokens(n: int, rows: int = 1) -> Tensor:
    return torch.randint(4, VOCABULARY, (rows, n), generator=torch.Generator().manual_seed(n))


def logits_of(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def kernels(model: PreTrainedModel) -> list[Tensor]:
    """Of each layer, first block first."""
    return [module.kernel for module in model.modules() if isinstance(module, ValueConvolution)]


def convolved(case: Case, taps: int = TAPS, seed: int = 3) -> PreTrainedModel:
    """A model whose kernels are random."""
    model = case.model()
    apply_convolution(model, taps)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for kernel in kernels(model):
            kernel.copy_(torch.randn(kernel.shape, generator=generator))
    return model


def windows(model: Any, n_layers: int) -> list[int]:
    """How far back each layer looks."""
    config = model.config.get_text_config()
    if (kinds := getattr(config, "layer_types", None)) is not None:
        return [config.sliding_window if kind == "sliding_attention" else 10**9 for kind in kinds]
    return [getattr(config, "sliding_window", None) or 10**9] * n_layers


def by_the_sum(case: Case, model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits with sum over j of w_j v_{t-j} added in front of W_O: values by hand, token by token."""
    plain = case.model()
    anatomy = find_anatomy(plain)
    reach = windows(plain, len(anatomy.layers))
    values: dict[int, Tensor] = {}

    def keep(number: int) -> Any:
        rows = anatomy.layers[number].W_V
        assert rows is not None

        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            values[number] = out[..., rows.index]

        return plain.get_submodule(rows.module).register_forward_hook(hook)

    def add(number: int) -> Any:
        layer, kernel = anatomy.layers[number], kernels(model)[number].detach()
        assert layer.W_O is not None
        groups = layer.n_heads // layer.n_kv_heads

        def hook(module: nn.Module, args: Any) -> Any:
            out = args[0].clone().view(*ids.shape, layer.n_heads, layer.d_head)
            value = values[number].view(*ids.shape, layer.n_kv_heads, layer.d_head)
            for head in range(layer.n_heads):
                for t in range(ids.shape[1]):
                    for j in range(1, kernel.shape[-1] + 1):
                        if j <= t and j < reach[number]:
                            out[:, t, head] += kernel[head // groups, :, j - 1] * value[:, t - j, head // groups]
            return (out.flatten(2), *args[1:])

        return plain.get_submodule(layer.W_O).register_forward_pre_hook(hook)

    for number in range(len(anatomy.layers)):
        keep(number)
        add(number)
    return logits_of(plain, ids)


@EVERY_NAME
@pytest.mark.parametrize("training", [True, False])
def test_a_model_begins_as_it_was_bit_for_bit(name: str, training: bool) -> None:
    model = BY_NAME[name].model()
    find_anatomy(model)
    ids = tokens(WINDOW + 5)
    plain = logits_of(model, ids)
    model.train(training)
    before = dict(model.named_parameters())
    apply_convolution(model)
    assert model.training is training
    assert torch.equal(logits_of(model.eval(), ids), plain)
    added = {key: value for key, value in model.named_parameters() if key not in before}
    assert all(key.endswith(f"{ADDED_TERM}.kernel") for key in added)
    assert len(added) == len(find_anatomy(model).layers)
    assert all(value.requires_grad and not value.any() for value in added.values())


@EVERY_NAME
@pytest.mark.parametrize("taps", [1, TAPS, WINDOW + 2])
def test_it_equals_the_documented_sum(name: str, taps: int) -> None:
    case, ids = BY_NAME[name], tokens(WINDOW + 5)
    model = convolved(case, taps)
    logits = logits_of(model, ids)
    assert largest_difference([by_the_sum(case, model, ids)], [logits]) < 2e-5
    assert largest_difference([logits_of(case.model(), ids)], [logits]) > 1e-2


def test_sequences_shorter_than_the_taps_use_all_their_tokens() -> None:
    case = BY_NAME["llama"]
    model = convolved(case)
    for n in (1, 2, 3):
        assert largest_difference([by_the_sum(case, model, tokens(n))], [logits_of(model, tokens(n))]) < 2e-5


@EVERY_NAME
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name: str, side: str) -> None:
    model = convolved(BY_NAME[name])
    ids, n = tokens(9), 4
    alone = logits_of(model, ids)
    padding, real = torch.full((1, n), 5), torch.ones_like(ids)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], dim=1)
    mask = torch.cat([torch.zeros_like(padding), real] if side == "left" else [real, torch.zeros_like(padding)], dim=1)
    positions = torch.cat([(mask.cumsum(1) - 1).clamp(min=0), torch.arange(9 + n)[None]])
    batch = torch.cat([padded, tokens(9 + n)])
    logits = logits_of(model, batch, attention_mask=torch.cat([mask, torch.ones_like(mask)]), position_ids=positions)
    own = logits[:1, n:] if side == "left" else logits[:1, :9]
    assert largest_difference([alone], [own]) < 2e-5
    assert largest_difference([logits_of(model, tokens(9 + n))], [logits[1:]]) < 2e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_packed_sequences_do_not_see_one_another(name: str) -> None:
    model = convolved(BY_NAME[name])
    first, second = tokens(7), tokens(11)
    positions = torch.cat([torch.arange(7), torch.arange(11)])[None]
    logits = logits_of(model, torch.cat([first, second], dim=1), position_ids=positions)
    apart = torch.cat([logits_of(model, first), logits_of(model, second)], dim=1)
    assert largest_difference([apart], [logits]) < 2e-5


@EVERY_NAME
def test_generation_with_the_cache_is_generation_without(name: str) -> None:
    model = convolved(BY_NAME[name])
    # Longer than the window, so that its cache drops tokens on the way; the second row is padded.
    ids = torch.cat([tokens(WINDOW - 4), torch.cat([torch.full((1, 3), 1), tokens(WINDOW - 7)], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "output_logits": True}
    given |= {"return_dict_in_generate": True, "max_new_tokens": 8, "do_sample": False}
    given |= {"eos_token_id": None, "pad_token_id": 1}
    cached, plain = (model.generate(**given, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    assert largest_difference(list(plain.logits), list(cached.logits)) < 5e-5


@EVERY_NAME
def test_a_prompt_read_in_parts_is_a_prompt_read_at_once(name: str) -> None:
    model = convolved(BY_NAME[name])
    ids = tokens(WINDOW + 9)
    cache, pieces = None, []
    for part in ids.split([6, 1, 2, 16], dim=1):
        with torch.no_grad():
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    assert largest_difference([logits_of(model, ids)], [torch.cat(pieces, dim=1)]) < 2e-5


@EVERY_NAME
def test_the_same_routes_are_used_as_without_and_agree(name: str) -> None:
    case = BY_NAME[name]
    model = convolved(case)
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "tiny")
    assert lm.route.name == case.routes[0]
    table = lm.log_probabilities(lm.encode(PREFIX), QUERIES)
    for query, row in zip(QUERIES, table, strict=True):
        expected = naive_scores(model, PREFIX, query).double()
        torch.testing.assert_close(row[: len(expected)], expected, atol=2e-4, rtol=1e-4)
    layout, want = lay_out(QUERIES), Recording(output=True, scores=True)
    records = []
    for route in (choose_route(model, lm.anatomy, "naive")[0], lm.route):
        logits, hidden, trace = route.read(route.encode(PREFIX), list(QUERIES), layout, want)
        assert trace is not None
        assert trace.output is not None
        records.append([logits, hidden, trace.output])
    assert largest_difference(*records) < 2e-5


@EVERY_NAME
def test_a_token_changes_nothing_before_it(name: str) -> None:
    model = convolved(BY_NAME[name])
    ids = tokens(WINDOW + 5)
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % VOCABULARY
    before, after = logits_of(model, ids), logits_of(model, changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, 11:], after[:, 11:], atol=1e-3)


def test_kernels_get_gradients_that_are_right_from_zero_on() -> None:
    # All of it in float64, where llama's norms are not.
    model = tiny_model("gpt2", dtype=torch.float64)
    apply_convolution(model)
    ids = tokens(12)

    def loss() -> Tensor:
        # The model's own is taken in single precision.
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits[0, :-1], ids[0, 1:])

    loss().backward()
    for kernel in kernels(model):
        assert kernel.grad is not None
        assert kernel.grad.abs().min() > 0
        step = 1e-5
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                kernel[1, 3, 2] += sign * step
                losses.append(float(loss()))
                kernel[1, 3, 2] -= sign * step
        assert float(kernel.grad[1, 3, 2]) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


# Mistakes.


@pytest.mark.parametrize("name", ["xglm", "falcon", "bloom"])
def test_families_with_their_own_attention_code_are_refused(name: str) -> None:
    model = BY_NAME[name].model()
    ids = tokens(9)
    plain = logits_of(model, ids)
    with pytest.raises(ConfigError, match=rf"{type(model).__name__} computes attention in its own code.*llama or"):
        apply_convolution(model)
    assert not kernels(model)
    torch.testing.assert_close(logits_of(model, ids), plain)


@pytest.mark.parametrize("taps", [0, -2])
def test_fewer_than_one_tap_is_refused(taps: int) -> None:
    with pytest.raises(ConfigError, match=rf"taps {taps} must be at least 1"):
        apply_convolution(tiny_model("llama"), taps)


def test_momentum_or_another_convolution_is_not_silently_replaced() -> None:
    model = tiny_model("llama")
    apply_momentum(model, 0.3)
    with pytest.raises(ConfigError, match="has momentum or a convolution already"):
        apply_convolution(model)
    assert momentum_of(model) is not None
    model = convolved(BY_NAME["llama"])
    before = [kernel.clone() for kernel in kernels(model)]
    with pytest.raises(ConfigError, match="has momentum or a convolution already"):
        apply_convolution(model)
    with pytest.raises(ConfigError, match=r"has a convolution already \(apply_convolution\)"):
        apply_momentum(model, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(kernels(model), before, strict=True))
    assert momentum_of(model) is None
