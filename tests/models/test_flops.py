import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dualform.models.edit import KeyValueTraining
from dualform.models.flops import forward_flops, key_value_training_flops
from dualform.models.forward import forward_rows
from tests.models.reference import BY_NAME, wrapped
from tests.tiny import FAMILIES, tiny_model

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
    found = counted(lambda: forward_rows(model, rows, input_ids=IDS, use_cache=False))
    # torch counts the whole square of query-key pairs; we count the pairs that see one another.
    square = sum(4 * layer.n_heads * layer.d_head * (N * N - N * (N + 1) / 2) for layer in lm.anatomy.layers)
    expected = forward_flops(lm.model, lm.anatomy, own=N, scored=3) + square
    # Rotary embedding multiplies positions with frequencies, which torch counts and we leave out: under a percent.
    assert found == pytest.approx(expected, rel=0.01)


def test_a_prefix_costs_attention_alone():
    lm = wrapped(BY_NAME["llama"])
    without = forward_flops(lm.model, lm.anatomy, own=10, prefix=0)
    # 2 layers, 4 heads of 8, 10 tokens x 100 prefix tokens, two products of two operations each
    assert forward_flops(lm.model, lm.anatomy, own=10, prefix=100) - without == 2 * 4 * 4 * 8 * 10 * 100
    halves = forward_flops(lm.model, lm.anatomy, own=30, scored=0) + forward_flops(
        lm.model, lm.anatomy, own=10, prefix=30, scored=1
    )
    assert halves == forward_flops(lm.model, lm.anatomy, own=40, scored=1)


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

        found = counted(step)
    square = sum(12 * layer.n_heads * layer.d_head * (N * N - N * (N + 1) / 2) for layer in lm.anatomy.layers)
    expected = key_value_training_flops(lm.model, lm.anatomy, N, N - 1) + square
    # The first layer's input needs no gradient, nor does anything below its W_K and W_V: with two layers a tenth.
    assert expected * 0.85 < found <= expected * 1.01
