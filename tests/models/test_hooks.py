"""The hook layer, on a small stack of modules whose values are known without it."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from dualform.models.hooks import Hooks, attach_permanently, detach, first_input
from tests.models.reference import assert_no_hooks
from tests.tiny import tiny_model


class Add(nn.Module):
    """Adds a number, and returns a tuple as residual blocks of many families do."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.runs = 0

    def forward(self, hidden_states, extra="untouched"):
        self.runs += 1
        return hidden_states + self.number, extra


class Stack(nn.Module):
    """Three blocks, of which the last is the first again; the second is called by keyword."""

    def __init__(self):
        super().__init__()
        self.one, self.ten = Add(1), Add(10)

    def forward(self, x):
        x, _ = self.one(x)
        x, self.passed_on = self.ten(hidden_states=x)
        x, _ = self.one(x)
        return x


@pytest.fixture
def stack():
    return Stack()


ZERO = torch.zeros(1, 2, 3)


def test_observing_a_transformer_changes_nothing_bit_for_bit():
    model = tiny_model("llama")
    ids = torch.arange(4, 10)[None]
    seen: list[Any] = []
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with Hooks(model) as hooks:
            for module in model.modules():
                hooks.before(module, seen.append)
                hooks.before_call(module, lambda args, kwargs: None)
                hooks.after(module, lambda x, out: None)
                hooks.after(module, lambda x, out: None, whole=True)
            logits = model(input_ids=ids).logits
    assert torch.equal(logits, expected)
    assert len(seen) >= len(list(model.modules())) - 2
    assert_no_hooks(model)


def test_each_use_of_a_shared_module_is_observed_in_order(stack):
    seen = []
    with Hooks(stack) as hooks:
        hooks.before("one", lambda x: seen.append(("given", float(x.max()))))
        hooks.after("one", lambda x, out: seen.append(("returned", float(out.max()))))
        stack(ZERO)
    assert seen == [("given", 0), ("returned", 1), ("given", 11), ("returned", 12)]


def test_an_input_is_replaced_by_position_or_by_keyword(stack):
    with Hooks(stack) as hooks:
        hooks.before("one", lambda x: x + 100)
        hooks.before("ten", lambda x: 2 * x)
        assert float(stack(ZERO).max()) == 2 * (100 + 1) + 10 + 100 + 1


def test_of_a_tuple_the_first_entry_is_replaced_and_the_others_stay(stack):
    with Hooks(stack) as hooks:
        hooks.after("ten", lambda x, out: out * 0)
        assert float(stack(ZERO).max()) == 1
    assert stack.passed_on == "untouched"


def test_a_whole_output_is_passed_unchanged(stack):
    seen = []
    with Hooks(stack) as hooks:
        hooks.after("ten", lambda x, out: seen.append(out), whole=True)
        stack(ZERO)
    ((states, extra),) = seen
    assert float(states.max()) == 11
    assert extra == "untouched"


def test_callbacks_on_one_module_run_in_the_order_in_which_they_were_added(stack):
    with Hooks(stack) as hooks:
        hooks.after("ten", lambda x, out: out + 1)
        hooks.after("ten", lambda x, out: out * 3)
        assert float(stack(ZERO).max()) == (11 + 1) * 3 + 1


def test_all_arguments_can_be_replaced(stack):
    with Hooks(stack) as hooks:
        hooks.before_call("ten", lambda args, kwargs: (args, {**kwargs, "extra": "more"}))
        stack(ZERO)
    assert stack.passed_on == "more"


def test_a_modules_forward_is_replaced_and_its_hooks_still_run(stack):
    seen = []
    with Hooks(stack) as hooks:
        hooks.replace_forward("ten", lambda *args, **kwargs: (first_input(args, kwargs), "skipped"))
        hooks.after("ten", lambda x, out: seen.append(float(out.max())))
        assert float(stack(ZERO).max()) == 2
    assert seen == [1]
    assert stack.ten.runs == 0
    assert float(stack(ZERO).max()) == 12


def test_a_forward_that_was_replaced_before_is_restored(stack):
    def before(hidden_states):
        return hidden_states, "from before"

    stack.ten.forward = before
    with Hooks(stack) as hooks:
        hooks.replace_forward("ten", lambda hidden_states: (hidden_states, "inside"))
        stack(ZERO)
        assert stack.passed_on == "inside"
    assert stack.ten.forward is before


def test_modules_are_numbered_for_one_callback(stack):
    seen = []
    with Hooks(stack) as hooks:
        hooks.after_each(["ten", "one"], lambda number, x, out: seen.append(number))
        stack(ZERO)
    assert seen == [1, 0, 1]


def test_no_module_runs_after_a_stop_and_the_program_continues(stack):
    with Hooks(stack) as hooks:
        hooks.after("one", lambda x, out: hooks.stop())
        stack(ZERO)
        pytest.fail("the forward went on")
    assert (stack.one.runs, stack.ten.runs) == (1, 0)
    assert_no_hooks(stack)


def test_a_stop_ends_the_block_of_its_own_hooks_only(stack):
    with Hooks(stack) as outer:
        with Hooks(stack) as inner:
            inner.after("ten", lambda x, out: inner.stop())
            stack(ZERO)
        with Hooks(stack) as inner:
            inner.after("one", lambda x, out: outer.stop())
            stack(ZERO)
        pytest.fail("the outer block went on")
    assert (stack.one.runs, stack.ten.runs) == (2, 1)
    assert_no_hooks(stack)


def test_inner_hooks_are_removed_and_outer_ones_stay(stack):
    with Hooks(stack) as outer:
        outer.after("ten", lambda x, out: out + 1)
        with Hooks(stack) as inner:
            inner.after("ten", lambda x, out: out * 100)
            assert float(stack(ZERO).max()) == 1201
        assert float(stack(ZERO).max()) == 13


def test_everything_is_removed_when_the_body_raises(stack):
    def fail():
        with Hooks(stack) as hooks:
            hooks.before("one", lambda x: x + 1)
            hooks.after("one", lambda x, out: out + 1)
            hooks.replace_forward("ten", lambda hidden_states: (hidden_states, ""))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_no_hooks(stack)
    assert float(stack(ZERO).max()) == 12


def test_an_unknown_name_leaves_nothing_behind(stack):
    with pytest.raises(AttributeError, match="eleven"), Hooks(stack) as hooks:
        hooks.after_each(["one", "eleven"], lambda number, x, out: None)
    assert_no_hooks(stack)


def test_a_callback_can_be_called_although_the_forward_raises(stack):
    seen = []
    with Hooks(stack) as hooks:
        hooks.after("one", lambda x, out: seen.append("always"), always=True)
        hooks.after("one", lambda x, out: seen.append("only when it returns"))
        with pytest.raises(TypeError):
            stack("no tensor")
    assert seen == ["always"]


def _count(module, args, kwargs):
    module.counted = getattr(module, "counted", 0) + 1


def _count_back(module, args, out):
    module.counted -= 1


def test_permanent_hooks_are_attached_once_survive_a_copy_and_can_be_detached(stack):
    attach_permanently(stack, _count)
    attach_permanently(stack, _count)
    stack(ZERO)
    assert stack.counted == 1
    copied = copy.deepcopy(stack)
    attach_permanently(copied, _count, _count_back)
    copied(ZERO)
    assert copied.counted == 1
    detach(copied, _count, _count_back)
    assert_no_hooks(copied)
    copied(ZERO)
    assert copied.counted == 1
