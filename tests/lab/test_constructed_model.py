"""The constructed layer: what it says in context is what a gradient step says, and not by any other rule."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.lab.constructed_model import ConstructedModel, ConstructedWeights, SumAttention, construct
from dualform.lab.token_world import TokenWorld
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.loading.load import load_model
from dualform.models.reading.attention import AttentionCall
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.task import Task

K, RATE, D, M = 6, 0.7, 3, 4
WORLD = TokenWorld.draw(D, 36, seed=1)
LAYER = ConstructedWeights.draw(WORLD, M, seed=1)
TASK = WORLD.task(seed=1, remembering=True)
CHOSEN = draw_demonstrations(TASK, K, seed=1)
WANT = Recording(output=True, scores=True, demo_scores=True, q=True)


def model(**changes) -> ConstructedModel:
    return construct(WORLD, LAYER, **{"rate": RATE, "n_demonstrations": K, "positions": 48, **changes})


def wrapped(route: str | None = None, **changes) -> LanguageModel:
    return LanguageModel.wrap(model(**changes), WORLD.tokenizer(), "constructed", route)


@dataclass(frozen=True)
class LayerOutputs:
    """Outputs of both layers at the last word of every query, `(query, d_model)`, and the queries' vectors."""

    copied: Tensor
    stepped: Tensor
    x: Tensor


def layer_outputs(lm: LanguageModel, task: Task = TASK, chosen: Demonstrations | None = CHOSEN) -> LayerOutputs:
    encoder = Encoder(lm, task)
    encoded = encoder.demonstrations(chosen or CHOSEN)
    adapted = ZeroShot(encoder.opening).adapt(lm, encoded) if chosen is None else InContext().adapt(lm, encoded)
    queries = [encoder.query(example) for example in task.split("test")]
    (indices,) = lm.groups(queries)
    trace = adapted.read_group(queries, indices, WANT).trace
    assert trace is not None
    assert trace.output is not None
    x = WORLD.vectors(torch.tensor([queries[i].prompt[-1] for i in indices]))
    return LayerOutputs(trace.output[:, 0], trace.output[:, 1], x)


def stepped(rate: float = RATE, labels: tuple[int, ...] = CHOSEN.labels) -> Tensor:
    """W after a step on the mean over demonstrations, its gradient written out sum by sum."""
    W = LAYER.W_0.clone()
    for example, label in zip(CHOSEN.examples, labels, strict=True):
        x, y = WORLD.x[example.row], LAYER.readout[WORLD.label_ids[label]]
        W -= rate / K * torch.outer(LAYER.W_0 @ x - y, x)
    return W


def gap(outputs: LayerOutputs, W: Tensor) -> float:
    out = model().parts.out
    expected = outputs.x @ W.mT
    rest = outputs.stepped.clone()
    rest[:, out] -= expected
    return float(rest.abs().max() / expected.abs().max())


def test_attention_to_demonstrations_is_a_gradient_step():
    assert gap(layer_outputs(wrapped()), stepped()) < 1e-12


def test_without_demonstrations_it_says_what_it_knows():
    assert gap(layer_outputs(wrapped(), chosen=None), LAYER.W_0) < 1e-12


@pytest.mark.parametrize(
    ("changes", "W"),
    [
        ({"softmax": True}, stepped()),
        ({"n_demonstrations": K + 1}, stepped()),
        ({"rate": 2 * RATE}, stepped()),
        ({}, stepped(labels=tuple(1 - label for label in CHOSEN.labels))),
        ({}, LAYER.W_0),
    ],
    ids=["softmax", "another N", "another rate", "other labels", "no step"],
)
def test_anything_else_is_seen(changes, W):
    assert gap(layer_outputs(wrapped(**changes)), W) > 1e-2


def test_memories_in_demonstrations_would_each_count_once_more():
    memory = " ".join(WORLD.memories) + " "
    splits = {
        split: tuple(replace(example, fields={**example.fields, "memory": memory}) for example in examples)
        for split, examples in TASK.splits.items()
    }
    everywhere = replace(TASK, splits=splits)
    outputs = layer_outputs(wrapped(positions=96), everywhere, draw_demonstrations(everywhere, K, seed=1))
    assert gap(outputs, stepped()) > 0.1
    assert gap(outputs, stepped() + K * LAYER.W_0) < 1e-12


def test_the_first_layer_copies_the_vector_of_the_token_before():
    built = model()
    ids = torch.tensor([[0, WORLD.first_word + 2, WORLD.label_ids[1], 1, WORLD.first_word + 7]])
    kept: list[Tensor] = []
    handle = built.layers[0].register_forward_hook(lambda module, args, out: kept.append(out))
    built(ids)
    handle.remove()
    (copied,) = kept
    expected = torch.zeros_like(copied)
    expected[0, 1:, built.parts.before] = WORLD.vectors(ids[0, :-1])
    assert torch.equal(copied, expected)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_faster_route_is_refused_and_the_others_agree(softmax):
    lm = wrapped(softmax=softmax)
    assert lm.route.name == "packed-mask"
    assert (
        "packed: ModelError: attention to prefix and query can be computed separately for softmax attention only"
        in lm.refused
    )
    outputs = layer_outputs(lm)
    for route in ("repeated", "naive"):
        other = layer_outputs(wrapped(route, softmax=softmax))
        # Rounding: one sums over the context at once, the other over prefix and query.
        torch.testing.assert_close(other.stepped, outputs.stepped, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(other.copied, outputs.copied, rtol=1e-12, atol=1e-13)


def test_all_projections_are_found():
    lm = wrapped()
    assert lm.anatomy.registry
    assert lm.anatomy.unclear == ()
    assert [layer.W_V.module for layer in lm.anatomy.layers if layer.W_V] == ["layers.0.v_proj", "layers.1.v_proj"]
    assert {(layer.n_heads, layer.d_head) for layer in lm.anatomy.layers} == {(1, 48)}


def test_it_attends_linearly_whatever_implementation_is_asked_for():
    built = model()
    ids = torch.tensor([[0, WORLD.first_word + 2, WORLD.label_ids[1], 1, WORLD.first_word + 7]])
    before = built(ids).logits
    for name in ("sdpa", "eager"):
        built.set_attn_implementation(name)
        assert torch.equal(built(ids).logits, before)
    softmax = model(softmax=True)(ids).logits
    assert (softmax - before).abs().max() > 1e-2


def test_a_checkpoint_loads_as_any_model_does(tmp_path: Path):
    lm = wrapped()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), device="cpu", dtype="float64")
    assert isinstance(again.model, ConstructedModel)
    assert again.route.name == lm.route.name
    assert torch.equal(layer_outputs(again).stepped, layer_outputs(lm).stepped)
    assert again.model.embedded_linear == lm.model.embedded_linear


def test_building_one_leaves_the_global_random_state():
    before = torch.random.get_rng_state()
    model()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_w_0_lies_where_it_is_said_to_lie():
    built = model()
    weight = built.get_parameter(built.embedded_linear.parameter)
    assert torch.equal(weight[built.embedded_linear.rows, built.embedded_linear.columns], LAYER.W_0)


@pytest.mark.parametrize("masked", [None, "bool", "additive"])
def test_linear_attention_is_the_sum_over_what_is_seen(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, n, 3, generator=generator, dtype=torch.float64) for n in (2, 4, 4))
    seen = torch.ones(2, 4, dtype=torch.bool).tril(2)
    if masked is not None:
        seen = torch.tensor([[True, False, True, False], [False, False, False, False]])
    mask = None if masked is None else seen[None, None]
    if masked == "additive":
        mask = torch.zeros(1, 1, 2, 4, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    outputs = SumAttention()(AttentionCall(q, k, v, mask, 0.5, None))
    expected = torch.zeros(2, 2, 1, 3, dtype=torch.float64)
    for row in range(2):
        for i in range(2):
            for j in range(4):
                if seen[i, j]:
                    expected[row, i, 0] += 0.5 * (q[row, 0, i] @ k[row, 0, j]) * v[row, 0, j]
    torch.testing.assert_close(outputs, expected)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ShapeError, match=r"vectors of 3 needs W_0 \(d_y, 3\).*given \(4, 2\)"):
        construct(WORLD, ConstructedWeights(LAYER.W_0[:, :2], LAYER.readout), rate=1.0, n_demonstrations=2)
    with pytest.raises(ConfigError, match="targets is 1; expected at least 2"):
        ConstructedWeights.draw(WORLD, 1, seed=0)
