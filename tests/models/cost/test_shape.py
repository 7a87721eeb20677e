from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from dualform.models.cost.memory import layer_bytes, outside_bytes
from dualform.models.cost.shape import shape_of, shape_of_config
from dualform.models.cost.work import TrainedWeights
from dualform.models.editing.edit import KeyValueTraining, WeightTraining, key_value_rows, mlp_rows, value_rows
from dualform.models.loading.meta_device import meta_device_model
from dualform.models.reading.forward import forward_rows
from dualform.models.structure.anatomy import row_axis
from dualform.models.structure.blocks import block_names, find_blocks
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.mixture import EXPERTS, INNER, LAYERS, SENT, WIDTH, tiny_mixture
from tests.models.reference import BY_NAME, wrapped
from tests.tiny import FAMILIES, PARAMETERS, tiny_model

IDS = torch.arange(3, 43)[None]
N = IDS.shape[1]


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forwards_operations_are_those_that_torch_counts(family):
    lm = wrapped(BY_NAME[family])
    rows = torch.arange(N - 3, N)
    # Eager attention in the open, so that every product is counted.
    model = tiny_model(family, attn_implementation="eager")
    actual = counted(lambda: forward_rows(model, rows, input_ids=IDS, use_cache=False))
    # torch counts the whole square of query-key pairs; we count the pairs that see one another.
    square = sum(4 * layer.n_heads * layer.d_head * (N * N - N * (N + 1) / 2) for layer in lm.anatomy.layers)
    expected = lm.shape.forward(own=N, scored=3) + square
    # Rotary embedding multiplies positions with frequencies, which torch counts and we leave out: under a percent.
    assert actual == pytest.approx(expected, rel=0.01)


def test_a_prefix_costs_attention_alone():
    lm = wrapped(BY_NAME["llama"])
    without = lm.shape.forward(own=10, prefix=0)
    # 2 layers, 4 heads of 8, 10 tokens x 100 prefix tokens, two products of two operations each
    assert lm.shape.forward(own=10, prefix=100) - without == 2 * 4 * 4 * 8 * 10 * 100
    halves = lm.shape.forward(own=30, scored=0) + lm.shape.forward(own=10, prefix=30, scored=1)
    assert halves == lm.shape.forward(own=40, scored=1)


@pytest.mark.parametrize("family", ["llama", "opt", "xglm"])
def test_a_training_steps_operations_are_those_that_torch_counts(family):
    # Families with W_K and W_V apart; where they are fused, torch also computes gradients that the delta leaves out.
    lm = wrapped(BY_NAME[family])
    model = tiny_model(family, attn_implementation="eager")
    rows = torch.arange(N - 1)
    with KeyValueTraining(model, lm.anatomy) as training:

        def step():
            logits, _ = forward_rows(model, rows, gradients=True, input_ids=IDS, use_cache=False)
            loss = torch.nn.functional.cross_entropy(logits, IDS[0, 1:])
            torch.autograd.backward([loss], inputs=training.parameters)

        actual = counted(step)
    square = sum(12 * layer.n_heads * layer.d_head * (N * N - N * (N + 1) / 2) for layer in lm.anatomy.layers)
    expected = lm.shape.training(N, N - 1) + square
    # The first layer's input needs no gradient, nor does anything below its W_K and W_V: with two layers a tenth.
    assert expected * 0.85 < actual <= expected * 1.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_of_each_part_are_those_that_are_trained(family):
    lm = wrapped(BY_NAME[family])
    rows: dict[Any, Any] = {
        "key_value": key_value_rows,
        "value_one_layer": partial(value_rows, layer=1),
        "mlp": mlp_rows,
    }
    for part, rows_of in rows.items():
        trained = 0
        for name, index in rows_of(lm.model, lm.anatomy).items():
            module = lm.model.get_submodule(name)
            weight = module.get_parameter("weight")
            trained += weight.numel() if index is None else len(index) * weight.shape[1 - row_axis(module)]
        assert lm.shape.trained(part) == (trained, 1 if part == "value_one_layer" else 0)
    assert lm.shape.trained("adapters") == (0, 0)


@pytest.mark.parametrize("family", ["llama", "opt", "xglm", "gpt_neo"])
@pytest.mark.parametrize("part", ["mlp", "value_one_layer"])
def test_the_operations_of_other_parts_are_those_that_torch_counts(family, part):
    lm = wrapped(BY_NAME[family])
    model = tiny_model(family, attn_implementation="eager")
    first = 0 if part == "mlp" else 1
    rows = mlp_rows(model, lm.anatomy) if part == "mlp" else value_rows(model, lm.anatomy, 1)
    with WeightTraining(model, rows) as training:

        def step():
            logits, _ = forward_rows(model, torch.arange(N - 1), gradients=True, input_ids=IDS, use_cache=False)
            loss = torch.nn.functional.cross_entropy(logits, IDS[0, 1:])
            torch.autograd.backward([loss], inputs=training.parameters)

        actual = counted(step)
    layers = lm.anatomy.layers
    unseen = N * N - N * (N + 1) / 2
    square = sum(4 * layer.n_heads * layer.d_head * unseen for layer in layers)
    square += sum(8 * layer.n_heads * layer.d_head * unseen for layer in layers[first:])
    expected = lm.shape.training(N, N - 1, part) + square
    # The first trained layer needs less than is counted: by less than all of it.
    layer, block = layers[first], block_names(lm.model, lm.anatomy)[first]
    over = sum(
        2 * N * module.weight.numel()
        for name, module in lm.model.named_modules()
        if name.startswith(f"{block}.") and hasattr(module, "weight")
    )
    over += 8 * layer.n_heads * layer.d_head * N * N
    assert expected - over < actual <= expected * 1.01


@pytest.mark.parametrize("family", ["llama", "opt", "xglm", "qwen3"])
def test_the_operations_of_a_layer_causal_step_are_those_that_torch_counts(family):
    lm = wrapped(BY_NAME[family])
    model = tiny_model(family, attn_implementation="eager")
    blocks = find_blocks(model, lm.anatomy)
    rows = torch.arange(N - 1)
    with KeyValueTraining(model, lm.anatomy) as training:

        def step():
            with blocks.detached() as outputs:
                logits, _ = forward_rows(model, rows, gradients=True, input_ids=IDS, use_cache=False)
            for logits_of_layer in [logits, *(blocks.unembed(output[0, rows]) for output in outputs[:-1])]:
                loss = torch.nn.functional.cross_entropy(logits_of_layer, IDS[0, 1:])
                torch.autograd.backward([loss], inputs=training.parameters)

        actual = counted(step)
    square = sum(10 * layer.n_heads * layer.d_head * (N * N - N * (N + 1) / 2) for layer in lm.anatomy.layers)
    expected = lm.shape.layer_causal_training(N, N - 1) + square
    # Rotary embedding again, once more for every layer that is unembedded.
    assert actual == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_gives_the_operations_of_the_real_model(family: str):
    model = tiny_model(family)
    anatomy = find_anatomy(model)
    shape = shape_of(meta_device_model(model.config, torch.float32))
    assert shape.parameters == PARAMETERS[family]
    assert shape.registry == anatomy.registry
    probed = shape_of(model, anatomy)
    for own, prefix, scored in ((1, 0, 1), (13, 5, 2), (40, 0, 0)):
        assert shape.forward(own, prefix, scored) == probed.forward(own, prefix, scored)
        assert shape.layer_causal_training(own, scored) == probed.layer_causal_training(own, scored)
        for part in get_args(TrainedWeights):
            assert shape.training(own, scored, part) == probed.training(own, scored, part)
    for layer in range(shape.n_layers):
        assert shape.ridge_equations((own, 7), layer) == probed.ridge_equations((own, 7), layer)
        assert shape.ridge_solution(layer) == probed.ridge_solution(layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_with_keys_or_values_are_not_counted_as_packed(family: str):
    model = tiny_model(family)
    held = {rows.module for layer in find_anatomy(model).layers for rows in (layer.W_K, layer.W_V) if rows is not None}
    head = model.get_output_embeddings()
    packed = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name not in held and module is not head
    )
    shape = shape_of(model)
    assert shape.linears - shape.unpacked == packed


def test_a_model_that_no_machine_here_could_hold_is_counted():
    large = LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    shape = shape_of_config(large)
    assert shape.parameters == pytest.approx(405e9, rel=0.01)
    assert shape.forward(1) == pytest.approx(2 * 403.7e9, rel=0.01)


def test_of_a_mixture_the_bytes_of_all_experts_count_and_the_operations_of_those_that_a_token_is_sent_to():
    model = tiny_mixture()
    shape = shape_of(meta_device_model(model.config, torch.float32))
    experts = LAYERS * EXPERTS * 3 * WIDTH * INNER
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.experts == experts
    assert shape.uncounted == 0
    assert shape.multiplied - shape.linears == experts * SENT / EXPERTS
    anatomy = find_anatomy(model)
    probed = shape_of(model, anatomy)
    for own, prefix, scored in ((1, 0, 1), (13, 5, 2)):
        assert shape.forward(own, prefix, scored) == probed.forward(own, prefix, scored)
        assert shape.training(own, scored) == probed.training(own, scored)
    # More experts of which as many are asked are no more work.
    assert shape_of(tiny_mixture(2 * EXPERTS)).forward(7) == shape.forward(7)
    assert layer_bytes(shape, "float32") * LAYERS + outside_bytes(shape, "float32") == 4 * shape.parameters


def test_parameters_whose_use_is_not_known_are_reported():
    model = tiny_mixture()
    # More experts than the config says are no experts that it speaks of.
    model.config.num_local_experts = EXPERTS + 1
    shape = shape_of(model)
    assert shape.experts == 0
    assert shape.uncounted == LAYERS * EXPERTS * 3 * WIDTH * INNER
    assert not any(shape_of(tiny_model(family)).uncounted for family in FAMILIES)


def test_layers_with_a_window_are_counted():
    shape = shape_of(tiny_model("gemma3"))
    assert (shape.window, shape.n_windowed, shape.n_layers) == (16, 2, 3)
