"""Momentum inside whole models answers to a plain reading of its formula at W_O, family by family."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from dualform.errors import ConfigError, ModelError
from dualform.models.editing.momentum import (
    ENTRY,
    apply_momentum,
    lags,
    momentum,
    momentum_of,
    remove_momentum,
    restore_momentum,
    visible_from_mask,
)
from dualform.models.loading.load import load_model
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query, lay_out
from dualform.models.reading.self_check import choose_route, largest_difference
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.reference import BY_NAME, CASES, Case
from tests.tiny import VOCABULARY, WINDOW, randomise_, tiny_model, tiny_tokenizer

ETA = 0.4
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
# Cached keys of these families do not fit a batch with padding on the left, or ALiBi counts from the row's end.
_GENERATES = [case for case in CASES if case.family != "mpt"]


def tokens(n: int, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(4, VOCABULARY, (rows, n), generator=generator)


def logits_of(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def windows(model: Any, n_layers: int) -> list[int | None]:
    """How far each layer looks back."""
    config = model.config.get_text_config()
    if (kinds := getattr(config, "layer_types", None)) is not None:
        return [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    if (kinds := getattr(config, "attention_layers", None)) is not None:
        return [config.window_size if kind == "local" else None for kind in kinds]
    return [getattr(config, "sliding_window", None)] * n_layers


def by_the_formula(case: Case, ids: Tensor, eta: float | Tensor, normalised: bool = False) -> Tensor:
    """Logits with sum over i < t of eta^(t-i) v_i added in front of W_O: values by hand, token by token."""
    model = case.model(dtype=torch.float32)
    anatomy = find_anatomy(model)
    reach = windows(model, len(anatomy.layers))
    values: dict[int, Tensor] = {}
    handles = []

    def keep(number: int) -> Any:
        rows = anatomy.layers[number].W_V
        assert rows is not None

        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            values[number] = out[..., rows.index]

        return model.get_submodule(rows.module).register_forward_hook(hook)

    def add(number: int) -> Any:
        layer = anatomy.layers[number]
        assert layer.W_O is not None

        def hook(module: nn.Module, args: Any) -> Any:
            joined = args[0].clone()
            shape = joined.shape
            out = joined.view(*ids.shape, layer.n_heads, layer.d_head)
            value = values[number].view(*ids.shape, layer.n_kv_heads, layer.d_head)
            for head in range(layer.n_heads):
                decay = float(eta if isinstance(eta, float) else eta[head])
                source = value[:, :, head // (layer.n_heads // layer.n_kv_heads)]
                for t in range(ids.shape[1]):
                    first = 0 if reach[number] is None else max(0, t - int(reach[number] or 0) + 1)
                    for i in range(first, t):
                        share = (1 - decay) / decay if normalised and decay else 1.0
                        out[:, t, head] += share * decay ** (t - i) * source[:, i]
            return (out.view(shape), *args[1:])

        return model.get_submodule(layer.W_O).register_forward_pre_hook(hook)

    for number in range(len(anatomy.layers)):
        handles += [keep(number), add(number)]
    return logits_of(model, ids)


@EVERY_CASE
def test_every_family_follows_the_formula(case: Case) -> None:
    ids = tokens(WINDOW + 5)
    plain = logits_of(case.model(), ids)
    model = case.model()
    apply_momentum(model, ETA)
    logits = logits_of(model, ids)
    assert largest_difference([by_the_formula(case, ids, ETA)], [logits]) < 2e-5
    assert largest_difference([plain], [logits]) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "xglm"])
def test_each_head_can_have_its_own_and_weights_can_sum_to_one(name: str) -> None:
    case, ids = BY_NAME[name], tokens(12)
    eta = torch.tensor([0.0, 0.2, 0.5, 0.9])
    model = case.model()
    apply_momentum(model, eta.tolist())
    assert largest_difference([by_the_formula(case, ids, eta)], [logits_of(model, ids)]) < 2e-5
    model = case.model()
    apply_momentum(model, 0.3, normalised=True)
    assert largest_difference([by_the_formula(case, ids, 0.3, True)], [logits_of(model, ids)]) < 2e-5


@EVERY_CASE
def test_without_momentum_or_with_eta_zero_nothing_changes_at_all(case: Case) -> None:
    ids = tokens(WINDOW + 5)
    model = case.model()
    find_anatomy(model)
    plain = logits_of(model, ids)
    implementation = model.config._attn_implementation
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with momentum(model, 0.0):
        assert torch.equal(logits_of(model, ids), plain)
    with momentum(model, ETA):
        assert not torch.equal(logits_of(model, ids), plain)
    with pytest.raises(IndexError), momentum(model, ETA):
        logits_of(model, torch.full((1, 3), VOCABULARY))
    assert torch.equal(logits_of(model, ids), plain)
    assert model.config._attn_implementation == implementation
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert momentum_of(model) is None
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


@EVERY_CASE
def test_a_token_changes_nothing_before_it(case: Case) -> None:
    ids = tokens(WINDOW + 5)
    changed = ids.clone()
    changed[0, 10] = (ids[0, 10] + 1) % VOCABULARY
    model = case.model()
    apply_momentum(model, ETA)
    before, after = logits_of(model, ids), logits_of(model, changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, 11:], after[:, 11:], atol=1e-3)


@EVERY_CASE
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(case: Case, side: str) -> None:
    if case.family == "mpt":
        pytest.skip("its ALiBi counts from the end of the row, padding included, with and without momentum")
    ids, n = tokens(9), 4
    model = case.model()
    apply_momentum(model, ETA)
    alone = logits_of(model, ids)
    padding = torch.full((1, n), 5)
    padded = torch.cat([padding, ids] if side == "left" else [ids, padding], dim=1)
    real = torch.ones_like(ids)
    mask = torch.cat([torch.zeros_like(padding), real] if side == "left" else [real, torch.zeros_like(padding)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    takes_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    # A second, longer row makes the batch one in which padding is needed.
    batch = torch.cat([padded, tokens(9 + n)])
    logits = logits_of(
        model,
        batch,
        attention_mask=torch.cat([mask, torch.ones_like(mask)]),
        **({"position_ids": torch.cat([positions, torch.arange(9 + n)[None]])} if takes_positions else {}),
    )
    own = logits[:1, n:] if side == "left" else logits[:1, :9]
    assert largest_difference([alone], [own]) < 2e-5
    assert largest_difference([logits_of(model, tokens(9 + n))], [logits[1:]]) < 2e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", "mistral-sliding_window=16"])
def test_packed_sequences_do_not_see_one_another(name: str) -> None:
    model = BY_NAME[name].model()
    apply_momentum(model, ETA)
    first, second = tokens(7), tokens(11)
    positions = torch.cat([torch.arange(7), torch.arange(11)])[None]
    logits = logits_of(model, torch.cat([first, second], dim=1), position_ids=positions)
    apart = torch.cat([logits_of(model, first), logits_of(model, second)], dim=1)
    assert largest_difference([apart], [logits]) < 2e-5


@pytest.mark.parametrize("case", _GENERATES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_generation_with_the_cache_is_generation_without(case: Case, batch: int) -> None:
    model = case.model()
    apply_momentum(model, ETA)
    # Longer than the window, so that its cache drops tokens on the way.
    ids = tokens(WINDOW - 4)
    mask = torch.ones_like(ids)
    if batch == 2:
        ids = torch.cat([ids, torch.cat([torch.full((1, 3), 1), tokens(WINDOW - 7)], dim=1)])
        mask = torch.ones_like(ids)
        mask[1, :3] = 0
    settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    given = {"input_ids": ids, "attention_mask": mask, "output_logits": True, "return_dict_in_generate": True}
    cached = model.generate(**given, use_cache=True, **settings)
    plain = model.generate(**given, use_cache=False, **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    assert largest_difference(list(plain.logits), list(cached.logits)) < 5e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_prompt_read_in_parts_is_a_prompt_read_at_once(name: str) -> None:
    model = BY_NAME[name].model()
    apply_momentum(model, ETA)
    ids = tokens(WINDOW + 9)
    whole = logits_of(model, ids)
    cache = None
    pieces = []
    for part in ids.split([6, 7, 1, 11], dim=1):
        with torch.no_grad():
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    assert largest_difference([whole], [torch.cat(pieces, dim=1)]) < 2e-5


@EVERY_CASE
def test_the_same_routes_read_it_as_without(case: Case) -> None:
    model = case.model()
    apply_momentum(model, ETA)
    anatomy = find_anatomy(model)
    chosen, _ = choose_route(model, anatomy)
    assert chosen.name == case.routes[0]
    naive, _ = choose_route(model, anatomy, "naive")
    queries = [Query(tuple(tokens(4)[0].tolist()), ((5,), (6, 7))), Query(tuple(tokens(9)[0].tolist()), ((8, 9, 10),))]
    layout = lay_out(queries)
    want = Recording(output=True, scores=True)
    records = []
    for route in (naive, chosen):
        logits, hidden, trace = route.read(route.encode(tuple(tokens(20)[0].tolist())), queries, layout, want)
        assert trace is not None
        assert trace.output is not None
        records.append([logits, hidden, trace.output])
    assert largest_difference(*records) < 2e-5


def test_what_is_recorded_has_the_momentum_in_it() -> None:
    lm = LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), "tiny")
    queries = [Query((5, 6, 7, 8), ((9,),))]

    def recorded() -> Tensor:
        (readings,) = lm.read(lm.encode((4, 11)), queries, Recording(output=True))
        assert readings.trace is not None
        assert readings.trace.output is not None
        return readings.trace.output

    before = recorded()
    with momentum(lm.model, ETA):
        assert not torch.allclose(recorded(), before, atol=1e-3)
    assert torch.equal(recorded(), before)


# Saving and loading.


@pytest.mark.parametrize("name", ["llama", "xglm"])
@pytest.mark.parametrize(
    "settings",
    [{"eta": 0.3}, {"eta": [0.1, 0.2, 0.3, 0.4]}, {"eta": 0.3, "learned": True, "per_head": True, "normalised": True}],
)
def test_saving_and_loading_keep_it(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    model = BY_NAME[name].model()
    apply_momentum(model, layers=[1], **settings)
    if settings.get("learned"):
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith("logit"):
                    parameter += torch.tensor([0.1, -0.2, 0.3, 0.4])
    ids = tokens(12)
    expected = logits_of(model, ids)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)

    loaded = load_model(str(tmp_path)).model
    assert largest_difference([expected], [logits_of(loaded, ids)]) < 1e-6
    assert momentum_of(loaded) == momentum_of(model)
    # And once more: what was loaded can be saved.
    loaded.save_pretrained(tmp_path / "again")
    tiny_tokenizer().save_pretrained(tmp_path / "again")
    again = load_model(str(tmp_path / "again")).model
    assert largest_difference([expected], [logits_of(again, ids)]) < 1e-6


def test_a_copy_is_independent() -> None:
    model = tiny_model("llama")
    apply_momentum(model, ETA)
    twin = copy.deepcopy(model)
    ids = tokens(12)
    assert torch.equal(logits_of(twin, ids), logits_of(model, ids))
    remove_momentum(model)
    assert not torch.allclose(logits_of(twin, ids), logits_of(model, ids), atol=1e-3)


def test_a_learned_eta_gets_a_gradient_that_is_right() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    apply_momentum(model, 0.3, learned=True)
    ids = tokens(12)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    logit = dict(model.named_parameters())["model.layers.0.self_attn.dualform_momentum.logit"]
    assert logit.grad is not None
    step = 1e-3
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            logit += sign * step
            losses.append(float(model(input_ids=ids, labels=ids).loss))
            logit -= sign * step
    assert float(logit.grad) == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=2e-3)


# Masks.


def test_lags_count_visible_tokens() -> None:
    # Padding, then two tokens; one hidden token between the second and the third.
    visible = torch.tensor([[[False, True, False, False], [False, True, False, True]]])
    assert lags(visible)[0, 1].tolist() == [2, 1, 1, 0]
    assert lags(visible)[0, 0, 1] == 0


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_masks_of_all_kinds_give_the_same_visibility(lowest: float) -> None:
    visible = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    additive = torch.zeros(1, 1, 3, 3).masked_fill(~visible, lowest) + torch.randn(1, 1, 3, 3) * 5
    assert torch.equal(visible_from_mask(additive), visible[:, 0])
    assert torch.equal(visible_from_mask(visible), visible[:, 0])


# Mistakes.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eta": 1.0}, "eta 1.0 must be 0 or more and below 1"),
        ({"eta": -0.1}, "eta -0.1 must be"),
        ({"eta": float("nan")}, "eta nan must be"),
        ({"eta": [0.1, 1.5, 0.1, 0.1]}, "eta 1.5 must be"),
        ({"eta": [0.1, 0.2]}, "eta has 2 numbers, but a layer has 4 heads"),
        ({"eta": 0.0, "learned": True}, "a learned eta cannot start from 0"),
        ({"layers": [0, 7]}, "layers [7] do not exist: the model has layers 0 to 1"),
    ],
)
def test_a_mistake_is_named_and_leaves_the_model_alone(settings: dict[str, Any], words: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError) as raised:
        apply_momentum(model, **settings)
    assert words in str(raised.value)
    assert momentum_of(model) is None


def test_momentum_cannot_be_added_twice() -> None:
    model = tiny_model("llama")
    apply_momentum(model, ETA)
    with pytest.raises(ConfigError, match="has momentum already"):
        apply_momentum(model, ETA)


def test_a_config_of_another_model_is_refused() -> None:
    model = tiny_model("llama")
    apply_momentum(model, ETA)
    other = tiny_model("gpt2")
    setattr(other.config, ENTRY, getattr(model.config, ENTRY))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.self_attn, which GPT2LMHeadModel does not have"):
        restore_momentum(other)


def test_a_failed_momentum_block_keeps_the_earlier_momentum() -> None:
    model = tiny_model("llama")
    settings = apply_momentum(model, ETA)
    ids = tokens(12)
    before = logits_of(model, ids)
    with pytest.raises(ConfigError, match="has momentum already"), momentum(model, 0.2):
        pass
    assert momentum_of(model) == settings
    assert torch.equal(logits_of(model, ids), before)


# Attention that is computed otherwise.


def test_heads_without_momentum_have_none_when_weights_sum_to_one() -> None:
    model = tiny_model("llama")
    eta = [0.0, 0.2, 0.5, 0.9]
    apply_momentum(model, eta, normalised=True)
    ids = tokens(12)
    whole = logits_of(model, ids)
    assert largest_difference([by_the_formula(BY_NAME["llama"], ids, torch.tensor(eta), True)], [whole]) < 2e-5
    with torch.no_grad():
        first = model(input_ids=ids[:, :7], use_cache=True)
        rest = [model(input_ids=ids[:, n : n + 1], past_key_values=first.past_key_values).logits for n in range(7, 12)]
    assert largest_difference([whole], [torch.cat([first.logits, *rest], dim=1)]) < 2e-5


def test_another_attention_function_does_not_lose_it() -> None:
    model = tiny_model("llama")
    apply_momentum(model, ETA)
    ids = tokens(12)
    expected = logits_of(model, ids)
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert largest_difference([expected], [logits_of(model, ids)]) < 2e-5


def soft_capped() -> Any:
    """A family in the registry that asks attention for more than dualform's function knows."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attn_logit_softcapping": 5.0}
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "sliding_window": 512}
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes, **heads, **special))
    randomise_(model, 0)
    return model.eval()


def test_a_family_in_the_registry_that_cannot_use_it_is_traced(tmp_path: Path) -> None:
    model = soft_capped()
    assert not find_anatomy(model).registry
    ids = tokens(12)
    plain = logits_of(model, ids)
    apply_momentum(model, ETA)
    logits = logits_of(model, ids)
    assert largest_difference([plain], [logits]) > 1e-2
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert largest_difference([logits], [logits_of(load_model(str(tmp_path)).model, ids)]) < 1e-6
    remove_momentum(model)
    assert torch.equal(logits_of(model, ids), plain)
    assert not model._forward_pre_hooks
