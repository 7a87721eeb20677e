"""Blocks found without names, and the logit lens against the model's own logits."""

import dataclasses

import pytest
import torch

from dualform.errors import ModelError
from dualform.models.structure.blocks import block_names, block_of, find_blocks
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.reference import BY_NAME, CASES, assert_no_hooks, plain, wrapped
from tests.tiny import LAYERS, tiny_model

IDS = torch.arange(5, 30)[None]

# transformers' xglm cannot run in float64.
IN_FLOAT64 = [case for case in CASES if case.family != "xglm"]
WITH_DTYPE = [(case, torch.float32, 1e-6) for case in CASES] + [(case, torch.float64, 1e-12) for case in IN_FLOAT64]


def read(blocks):
    """Every block's output and the logits of a plain forward."""
    with torch.no_grad(), blocks.detached() as outputs:
        logits = blocks.model(input_ids=IDS, use_cache=False).logits
    return outputs, logits


@pytest.mark.parametrize(("case", "dtype", "close"), WITH_DTYPE, ids=str)
def test_the_last_blocks_output_unembeds_to_the_models_logits_and_the_first_ones_does_not(case, dtype, close):
    lm = wrapped(case, None, dtype)
    blocks = find_blocks(lm.model, lm.anatomy)
    outputs, logits = read(blocks)
    assert len(outputs) == len(lm.anatomy.layers)
    torch.testing.assert_close(blocks.unembed(outputs[-1]), logits, rtol=close, atol=close)
    assert (blocks.unembed(outputs[0]) - logits).abs().max() > 0.1


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("gemma3", {"final_logit_softcapping": 2.0}), ("opt", {"word_embed_proj_dim": 16})],
    ids=["soft cap", "projection"],
)
def test_the_familys_operations_after_the_blocks_are_applied(family, overrides):
    model = tiny_model(family, **overrides)
    anatomy = find_anatomy(model)
    blocks = find_blocks(model, anatomy)
    outputs, logits = read(blocks)
    torch.testing.assert_close(blocks.unembed(outputs[-1]), logits, rtol=1e-6, atol=1e-6)
    # A norm and a head alone would miss it.
    norm = model.model.norm if family == "gemma3" else model.model.decoder.final_layer_norm
    if family == "gemma3":
        assert (model.lm_head(norm(outputs[-1])) - logits).abs().max() > 0.1
    else:
        assert outputs[-1].shape[-1] != model.lm_head.weight.shape[1]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryFamily:
    def test_a_block_contains_its_layers_attention_and_no_other(self, case):
        lm = wrapped(case)
        names = block_names(lm.model, lm.anatomy)
        assert len(set(names)) == len(lm.anatomy.layers)
        for i, layer in enumerate(lm.anatomy.layers):
            assert [layer.attention.startswith(f"{name}.") for name in names] == [j == i for j in range(len(names))]

    def test_detaching_blocks_changes_no_bit_of_the_logits(self, case):
        lm = wrapped(case)
        _, logits = read(find_blocks(lm.model, lm.anatomy))
        with torch.no_grad():
            assert torch.equal(logits, lm.model(input_ids=IDS, use_cache=False).logits)

    def test_no_gradient_leaves_a_block_downwards(self, case):
        model = case.model()
        blocks = find_blocks(model, find_anatomy(model))
        with blocks.detached() as outputs:
            loss = model(input_ids=IDS, use_cache=False).logits.square().mean()
        assert all(output.requires_grad for output in outputs)
        below = dict(model.get_submodule(blocks.names[0]).named_parameters())
        last = dict(model.get_submodule(blocks.names[-1]).named_parameters())
        assert not any(grads(loss, below.values()))
        assert any(grads(loss, last.values()))
        assert not any(grads(outputs[-1].sum(), [model.get_input_embeddings().weight]))
        # Without the cut both are reached.
        loss = model(input_ids=IDS, use_cache=False).logits.square().mean()
        assert any(grads(loss, below.values()))
        assert any(grads(loss, [model.get_input_embeddings().weight]))

    def test_gradients_through_unembedding_are_the_models(self, case):
        model = case.model()
        blocks = find_blocks(model, find_anatomy(model))
        with blocks.detached() as outputs:
            logits = model(input_ids=IDS, use_cache=False).logits
        (expected,) = torch.autograd.grad(logits[0, 3:7].square().mean(), outputs[-1])
        hidden = outputs[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(blocks.unembed(hidden[0, 3:7]).square().mean(), hidden)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)

    def test_nothing_stays_on_the_model_also_when_the_body_raises(self, case):
        model = case.model()
        before = [set(vars(module)) for module in model.modules()]
        anatomy = find_anatomy(model)
        blocks = find_blocks(model, anatomy)
        with pytest.raises(RuntimeError, match="in the middle"), blocks.detached():
            raise RuntimeError("in the middle")
        # Ids, and with them the head, are of another width than these.
        with pytest.raises(RuntimeError):
            blocks.unembed(torch.zeros(2, 7))
        assert_no_hooks(model)
        assert not any("forward" in vars(module) for module in model.modules())
        assert [set(vars(module)) for module in model.modules()] == before


def grads(loss, weights):
    """Which of the weights get a gradient."""
    gradients = torch.autograd.grad(loss, list(weights), retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def test_hidden_states_of_any_shape_and_number_are_unembedded():
    lm = wrapped(BY_NAME["gpt2"])
    blocks = find_blocks(lm.model, lm.anatomy)
    # More rows than the model has positions.
    hidden = torch.randn(3, 200, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = blocks.unembed(hidden)
        assert logits.shape == (3, 200, 384)
        torch.testing.assert_close(blocks.unembed(hidden[1, 7]), logits[1, 7], rtol=1e-5, atol=1e-5)


def test_a_modules_own_forward_is_restored():
    model = tiny_model("llama")
    block = model.model.layers[1]
    own = block.forward
    vars(block)["forward"] = own  # as accelerate leaves it on a model that is spread over devices
    blocks = find_blocks(model, find_anatomy(model))
    blocks.unembed(torch.zeros(1, 32))
    assert vars(block)["forward"] is own


def test_the_member_of_the_outermost_list_is_the_block():
    model = plain(BY_NAME["gpt_neo"])
    assert block_of(model, "transformer.h.1.attn.attention") == "transformer.h.1"
    assert block_of(model, "transformer.wte") is None


class TestModelsWithoutSeparateBlocks:
    def test_attention_in_no_list_is_named(self):
        lm = wrapped(BY_NAME["llama"])
        astray = dataclasses.replace(lm.anatomy.layers[0], attention="model.norm")
        anatomy = dataclasses.replace(lm.anatomy, layers=(astray, lm.anatomy.layers[1]))
        with pytest.raises(ModelError, match=r"LlamaForCausalLM: model\.norm is in no list of layers"):
            find_blocks(lm.model, anatomy)

    def test_a_layer_without_attention_is_named(self):
        lm = wrapped(BY_NAME["llama"])
        anatomy = dataclasses.replace(lm.anatomy, layers=lm.anatomy.layers[:1])
        with pytest.raises(ModelError, match=r"one attention module each \(model\.layers\.1 does not fit\)"):
            find_blocks(lm.model, anatomy)

    def test_two_attentions_in_a_block_are_named(self):
        lm = wrapped(BY_NAME["llama"])
        first = lm.anatomy.layers[0]
        anatomy = dataclasses.replace(lm.anatomy, layers=(first, first, lm.anatomy.layers[1]))
        with pytest.raises(ModelError, match=r"one attention module each \(model\.layers\.0 does not fit\)"):
            find_blocks(lm.model, anatomy)

    def test_blocks_that_run_twice_are_refused(self):
        model = tiny_model("llama")
        anatomy = find_anatomy(model)
        again = model.model.layers[0]

        def twice(module, args, out):
            return again(out, **dict(seen))

        seen = {}
        model.model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
        )
        model.model.layers[1].register_forward_hook(twice)
        with pytest.raises(ModelError, match="expected each block once, in order"):
            find_blocks(model, anatomy)

    def test_blocks_that_return_something_else_are_refused(self):
        model = tiny_model("llama")
        anatomy = find_anatomy(model)
        model.model.layers[1].register_forward_hook(lambda module, args, out: {"hidden": out})
        model.model.norm.register_forward_pre_hook(lambda module, args: args[0]["hidden"])
        with pytest.raises(ModelError, match=r"model\.layers\.1 returns dict; expected hidden states"):
            find_blocks(model, anatomy)

    def test_logits_that_depend_on_more_than_the_last_block_are_refused(self):
        model = tiny_model("llama")
        anatomy = find_anatomy(model)
        embedded = []
        model.model.embed_tokens.register_forward_hook(lambda module, args, out: embedded.append(out))
        model.model.norm.register_forward_hook(lambda module, args, out: out + embedded[-1])
        with pytest.raises(
            ModelError, match=r"model\.layers\.1 alone differ from the model's logits by \d.* of the larg"
        ):
            find_blocks(model, anatomy)


def test_the_tiny_models_have_more_than_one_block():
    # With a single one, much of the above would say nothing.
    assert LAYERS > 1
