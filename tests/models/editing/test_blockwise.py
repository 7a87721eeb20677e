from typing import Any

import pytest
import torch

from dualform.errors import ModelError
from dualform.models.editing.blockwise import BlockwiseForward, require_editable_outputs, require_separable, row_groups
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.blocks import find_blocks
from dualform.models.structure.output_norm import find_output_norms
from tests.families import tiny_family
from tests.models.reference import assert_no_hooks
from tests.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3", "xglm", "bloom", "olmo2", "opt")
PREFIX = tuple(range(40, 52))
TEXTS = (Query((5, 6, 7, 8, 9), ()), Query((10, 11, 12), ()), Query((13, 14, 15, 16), ()))
BRANCHED = (Query((5, 6, 7), ((8, 9, 10), (11, 12), (13,))), Query((14, 15), ((16, 17),)))


def loaded(family: str, route: str | None = None) -> Any:
    return LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family, route)


def twin(lm, blocks, prefix, prompt):
    """The same by plain hooks on a whole forward of one text: for each layer before, head output, output, after."""
    seen = {}

    def keep(name, layer, value):
        value = value[0] if isinstance(value, tuple) else value
        seen[name, layer] = value.reshape(-1, value.shape[-1])[len(prefix) :].clone()

    handles = []
    for number, (block, layer) in enumerate(zip(blocks.names, lm.anatomy.layers, strict=True)):
        module, W_O = lm.model.get_submodule(block), lm.model.get_submodule(layer.W_O)
        handles += [
            module.register_forward_pre_hook(
                lambda m, a, k, i=number: keep("before", i, a[0] if a else k["hidden_states"]), with_kwargs=True
            ),
            module.register_forward_hook(lambda m, a, out, i=number: keep("after", i, out)),
            W_O.register_forward_pre_hook(lambda m, a, i=number: keep("head_output", i, a[0])),
            W_O.register_forward_hook(lambda m, a, out, i=number: keep("output", i, out)),
        ]
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([[*prefix, *prompt]]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("prefix", [(), PREFIX])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_has_the_inputs_and_outputs_of_a_whole_forward(family, prefix):
    lm = loaded(family)
    blocks = find_blocks(lm.model, lm.anatomy)
    groups = [[TEXTS[i] for i in indices] for indices in row_groups(lm, TEXTS)]
    order = [text for group in groups for text in group]
    expected = [twin(lm, blocks, prefix, text.prompt) for text in order]
    forward: Any = BlockwiseForward(lm, blocks, lm.encode(prefix), groups)
    for layer in range(len(lm.anatomy.layers)):
        looked = [forward.peek(number, layer) for number in range(len(forward))]
        passed = [forward.advance(number, layer) for number in range(len(forward))]
        for name in ("before", "head_output", "output", "after"):
            actual = torch.cat([getattr(seen, name) for seen in passed])
            wanted = torch.cat([activations[name, layer] for activations in expected])
            assert torch.allclose(actual, wanted, atol=2e-5 * float(wanted.abs().max())), (name, layer)
        for early, late in zip(looked, passed, strict=True):
            assert early.after is None
            assert torch.equal(early.output, late.output)
    assert_no_hooks(lm.model)
    # Not only alike because nothing happens: blocks do move the hidden states.
    assert not torch.allclose(passed[0].before, passed[0].after, atol=1e-2)


@pytest.mark.parametrize("route", ["packed", "packed-mask", "repeated", "naive"])
def test_all_routes_take_the_same_steps(route):
    lm, packed = loaded("llama", route), loaded("llama")
    blocks, own = find_blocks(lm.model, lm.anatomy), find_blocks(packed.model, packed.anatomy)
    groups = [[TEXTS[i] for i in indices] for indices in row_groups(lm, TEXTS)]
    flat = [[text for group in groups for text in group]]
    slow: Any
    fast: Any
    slow, fast = (
        BlockwiseForward(lm, blocks, lm.encode(PREFIX), groups),
        BlockwiseForward(packed, own, packed.encode(PREFIX), flat),
    )
    for layer in range(len(lm.anatomy.layers)):
        actual = torch.cat([slow.advance(number, layer).after for number in range(len(slow))])
        assert torch.allclose(actual, fast.advance(0, layer).after, atol=1e-4)


def test_answers_of_several_tokens_are_processed_as_branches():
    lm = loaded("llama")
    blocks = find_blocks(lm.model, lm.anatomy)
    forward: Any = BlockwiseForward(lm, blocks, lm.encode(PREFIX), [BRANCHED])
    # Prompt and the tokens of each answer but its last: 3 + 2 + 1 + 0, and 2 + 1.
    branches = [(5, 6, 7, 8, 9), (5, 6, 7, 11), (14, 15, 16)]
    for layer in range(len(lm.anatomy.layers)):
        after = forward.advance(0, layer).after
        assert len(after) == 9
        first, second, third = (twin(lm, blocks, PREFIX, tokens)["after", layer] for tokens in branches)
        wanted = torch.cat([first, second[3:], third])
        assert torch.allclose(after, wanted, atol=1e-4)


def test_weights_may_change_between_two_steps():
    lm = loaded("llama")
    blocks = find_blocks(lm.model, lm.anatomy)
    forward: Any = BlockwiseForward(lm, blocks, lm.encode(()), [TEXTS])
    first = forward.advance(0, 0).after
    with torch.no_grad():
        lm.model.get_submodule(lm.anatomy.layers[1].W_O).weight.zero_()
    second = forward.advance(0, 1)
    assert torch.equal(second.before, first)
    assert not second.output.any()


def test_a_body_that_raises_leaves_no_hook_behind(monkeypatch):
    lm = loaded("llama")
    blocks = find_blocks(lm.model, lm.anatomy)
    forward: Any = BlockwiseForward(lm, blocks, lm.encode(()), [TEXTS])

    def fail(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(lm.route, "read", fail)
    with pytest.raises(MemoryError, match="no room"):
        forward.advance(0, 0)
    assert_no_hooks(lm.model)
    assert all("forward" not in vars(module) for module in lm.model.modules())


def test_a_quantized_output_projection_is_refused():
    lm = loaded("llama")
    module = lm.model.get_submodule(lm.anatomy.layers[1].W_O)
    module.weight = torch.nn.Parameter(module.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"o_proj\.weight is stored as torch\.int8.*quantized"):
        require_editable_outputs(lm)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_before_the_norm_gives_the_change_after_it(family):
    lm = loaded(family)
    blocks = find_blocks(lm.model, lm.anatomy)
    norms = find_output_norms(lm, blocks)
    seen = BlockwiseForward(lm, blocks, lm.encode(PREFIX), [TEXTS]).advance(0, 0)
    wanted = 1e-3 * torch.randn(seen.output.shape, generator=torch.Generator().manual_seed(0))
    change = norms[0].before(wanted, seen.output)
    if family not in ("gemma3", "olmo2"):
        assert norms[0].gain is None
        assert torch.equal(change, wanted)
        return
    (module,) = [
        module
        for name, module in lm.model.get_submodule(blocks.names[0]).named_modules()
        if name == "post_attention_layernorm"
    ]
    with torch.no_grad():
        became = module(seen.output + change) - module(seen.output)
    # The norm takes out the part along the output itself, and channels it all but closes are damped: most is left.
    assert torch.nn.functional.cosine_similarity(became, wanted, dim=-1).mean() > 0.9
    # Told as it is, the change would be another one.
    with torch.no_grad():
        naive = module(seen.output + wanted) - module(seen.output)
    assert (became - wanted).norm() < (naive - wanted).norm()


def test_a_norm_of_another_kind_gives_a_warning_and_no_change():
    lm = loaded("gemma3")
    blocks = find_blocks(lm.model, lm.anatomy)
    block = lm.model.get_submodule(blocks.names[1])
    block.post_attention_layernorm = torch.nn.LayerNorm(32)
    with pytest.warns(UserWarning, match=r"the norm after W_O of layers \[1\] is not a root-mean-square norm"):
        norms = find_output_norms(lm, blocks)
    assert not norms[1].before(torch.ones(2, 32), torch.ones(2, 32)).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_need_hidden_states_alone_are_separable(family):
    lm = loaded(family)
    require_separable(lm, find_blocks(lm.model, lm.anatomy))
    assert_no_hooks(lm.model)


def test_blocks_that_read_an_earlier_blocks_router_are_not_separable():
    # Zaya's router adds the states of the router before it, which a stepped-over block would not have computed.
    lm = LanguageModel.wrap(tiny_family("zaya"), tiny_tokenizer(), "zaya")
    blocks = find_blocks(lm.model, lm.anatomy)
    with pytest.raises(ModelError, match=r"model\.layers\.1 needs more of the blocks before it .* off by"):
        require_separable(lm, blocks)
    assert_no_hooks(lm.model)
