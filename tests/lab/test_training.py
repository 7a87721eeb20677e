"""The training loop: its rate, its clipping, each model by itself, and what happens to losses that are no numbers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import TrainingError
from dualform.lab.recipe import load_recipe
from dualform.lab.training import Training, TrainingStep, clip_, fit, rate_share


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def descended(weights: list[Tensor], training: Training, **more: Any) -> list[TrainingStep]:
    """Half the squared weights as loss, of models along the first axis."""
    steps: list[TrainingStep] = []
    fit(
        weights,
        lambda step: torch.stack([each.square().flatten(1).sum(1) for each in weights]).sum(0) / 2,
        training,
        after_step=steps.append,
        **more,
    )
    return steps


def test_the_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    training = Training(steps=10, learning_rate=2.0, warmup=0.4)
    expected = [0.5, 1.0, 1.5, 2.0, *(1 + math.cos(math.pi * n / 6) for n in range(6))]
    assert [training.rate(step) for step in range(10)] == pytest.approx(expected)
    assert Training(steps=1, learning_rate=2.0).rate(0) == 2.0
    constant = Training(steps=7, learning_rate=2.0, warmup=0.0, final=1.0)
    assert [constant.rate(step) for step in range(7)] == [2.0] * 7
    assert [rate_share(step, 0, 2, final=0.5) for step in range(3)] == pytest.approx([1.0, 0.75, 0.5])


def test_steps_are_those_of_adam() -> None:
    training = Training(steps=5, learning_rate=0.1, betas=(0.8, 0.9), clip=None)
    weights, twin = parameters((1, 3), (1, 2, 2)), parameters((1, 3), (1, 2, 2))
    descended(weights, training)
    plain = torch.optim.Adam(twin, betas=(0.8, 0.9))
    for step in range(5):
        plain.param_groups[0]["lr"] = training.rate(step)
        sum(each.square().sum() / 2 for each in twin).backward()  # type: ignore[union-attr]
        plain.step()
        plain.zero_grad()
    for weight, other in zip(weights, twin, strict=True):
        torch.testing.assert_close(weight, other)


def test_models_that_are_trained_together_learn_what_each_learns_alone() -> None:
    together = parameters((3, 4), (3, 2, 2))
    # One has far larger gradients than the others, and only its own are shortened.
    with torch.no_grad():
        for each in together:
            each[1] *= 100
    alone = [each.detach()[:1].clone().requires_grad_() for each in together]
    training = Training(steps=6, learning_rate=0.1)
    steps = descended(together, training)
    of_one = descended(alone, training)
    for many, weight in zip(together, alone, strict=True):
        torch.testing.assert_close(many[:1], weight)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.losses[0] for step in steps] == pytest.approx([step.loss for step in of_one])
    assert [step.norms[0] for step in steps] == pytest.approx([step.norms[0] for step in of_one])
    assert all(len(step.losses) == 3 for step in steps)
    assert [step.rate for step in steps] == [training.rate(step) for step in range(6)]


@pytest.mark.parametrize("together", [False, True])
def test_a_gradient_is_shortened_to_the_norm(together: bool) -> None:
    weights = parameters((2, 3), (2, 2, 2))
    for each in weights:
        each.grad = 10 * torch.ones_like(each)
    norms = clip_(weights, 1.0, together)
    assert norms.tolist() == pytest.approx([10 * 7**0.5] * 2 if together else 10 * 14**0.5)
    gradients = [each.grad for each in weights if each.grad is not None]
    left = torch.stack([each.square().flatten(1).sum(1) for each in gradients]).sum(0)
    assert left.tolist() == pytest.approx([1.0, 1.0] if together else [0.5, 0.5], rel=1e-5)
    assert clip_(weights, None, together).tolist() == pytest.approx(norms.div(norms).tolist() if together else 1.0)


def test_a_loss_that_is_no_number_is_an_error_that_names_the_model_and_leaves_the_weights() -> None:
    weights = parameters((2, 3))
    before = weights[0].detach().clone()

    def losses(step: int) -> Tensor:
        return weights[0].square().sum(1) * torch.tensor([1.0, math.inf])

    with pytest.raises(TrainingError, match=r"^step 1: the loss of seed 8 is inf at a learning rate of 0\.1\. Try\.$"):
        fit(weights, losses, Training(3, learning_rate=0.1), models=["seed 7", "seed 8"], remedy="Try.")
    assert torch.equal(weights[0], before)


def test_a_gradient_that_is_no_number_is_an_error() -> None:
    (weight,) = parameters((1,))
    with pytest.raises(TrainingError, match=r"^step 1: the gradient's norm is nan"):
        # The square root's slope at 0 is infinite, and infinity times 0 is no number.
        fit([weight], lambda step: (weight * 0).abs().sum().sqrt(), Training(1))


def test_a_patient_training_goes_on_without_the_gradient_of_a_broken_loss() -> None:
    weights = parameters((2, 3))
    broken = weights[0].detach()[1].clone()

    def losses(step: int) -> Tensor:
        return weights[0].square().sum(1) * torch.tensor([1.0, math.nan])

    seen: list[TrainingStep] = []
    with pytest.raises(TrainingError, match=r"^step 4: the loss of the second is nan"):
        fit(weights, losses, Training(9), patience=3, models=["the first", "the second"], after_step=seen.append)
    assert len(seen) == 3
    assert torch.equal(weights[0].detach()[1], broken)
    assert seen[-1].losses[0] < seen[0].losses[0]


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_patient_training_goes_on_without_a_gradient_whose_norm_is_infinite(clip: float | None) -> None:
    weights = parameters((2, 3))
    huge = weights[0].detach()[1].clone()

    def losses(step: int) -> Tensor:
        # Loss and gradient are finite in float32, and the gradient's square is not.
        return weights[0].square().sum(1) * torch.tensor([1.0, 1e30])

    seen: list[TrainingStep] = []
    with pytest.raises(TrainingError, match=r"^step 4: the gradient's norm of the second is inf"):
        fit(
            weights,
            losses,
            Training(9, clip=clip),
            patience=3,
            models=["the first", "the second"],
            after_step=seen.append,
        )
    assert all(math.isfinite(loss) for loss in seen[-1].losses)
    assert torch.equal(weights[0].detach()[1], huge)
    assert seen[-1].losses[0] < seen[0].losses[0]


def test_a_training_that_goes_on_takes_the_steps_that_are_left() -> None:
    training = Training(steps=8, learning_rate=0.1)
    whole, halves = parameters((1, 4)), parameters((1, 4))
    descended(whole, training)
    optimiser = torch.optim.Adam(halves, fused=True)

    def stop(step: TrainingStep) -> None:
        if step.number == 3:
            raise KeyboardInterrupt

    def loss(step: int) -> Tensor:
        return halves[0].square().sum(1) / 2

    with pytest.raises(KeyboardInterrupt):
        fit(halves, loss, training, optimiser=optimiser, after_step=stop)
    fit(halves, loss, training, optimiser=optimiser, first=3)
    assert torch.equal(halves[0], whole[0])


def test_a_recipe_is_a_schedule_too() -> None:
    recipe = load_recipe("tiny", tokens=load_recipe("tiny").batch_tokens * 4, learning_rate=0.5)
    (weight,) = parameters((3,))
    seen: list[TrainingStep] = []

    def loss(step: int) -> Tensor:
        # As a training over several processes does, whose batches come in pieces.
        loss = weight.square().sum()
        loss.backward()
        return loss.detach()

    fit([weight], loss, recipe, after_step=seen.append)
    assert [step.rate for step in seen] == [recipe.rate(step) for step in range(4)]
    assert seen[-1].loss < seen[0].loss
