import dataclasses

import peft
import pytest
import torch
import torch.nn.functional as F

from dualform.errors import ConfigError, TrainingError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.lora import Lora
from dualform.models.editing.edit import applied
from dualform.models.structure.anatomy import row_axis
from tests.learners.setting import FAMILIES, fresh, readings
from tests.models.editing.test_edit import IDS, Snapshot
from tests.models.reference import naive_scores
from tests.tiny import tiny_model

RATE, RANK, SEED = 0.01, 4, 7


def peft_itself(family, setting, loss_on):
    """peft in the ordinary way: its own model, its own merging, HF's own loss."""
    model = tiny_model(family)
    names = [rows.module for layer in setting.lm.anatomy.layers for rows in (layer.W_Q, layer.W_V)]
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.0,
        target_modules=list(dict.fromkeys(names)),
        fan_in_fan_out=row_axis(model.get_submodule(names[0])) == 1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = peft.get_peft_model(model, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    for ids, n_answer in zip(setting.demonstrations.sequences, setting.demonstrations.n_answer_tokens, strict=True):
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        if loss_on == "label":
            labels[:, :-n_answer] = -100
        optimiser.zero_grad()
        model(input_ids=tokens, labels=labels, use_cache=False).loss.backward()
        optimiser.step()
    return model.merge_and_unload().eval()


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("loss_on", ["all", "label"])
    def test_the_changed_model_is_pefts_own_merged_one(self, family, loss_on):
        setting = fresh(family)
        expected = peft_itself(family, setting, loss_on)
        adapted = Lora(setting.encoder.opening, RATE, RANK, loss_on, SEED).adapt(setting.lm, setting.demonstrations)
        with torch.no_grad():
            before = setting.lm.model(IDS).logits
            logits = expected(IDS).logits
            with applied(setting.lm.model, adapted.deltas):
                actual = setting.lm.model(IDS).logits
        assert (logits - before).abs().max() > 0.05
        # AdamW divides by the size of a gradient: where that is near nothing, rounding decides the step.
        torch.testing.assert_close(actual, logits, rtol=1e-3, atol=1e-3)
        table = answer_log_probabilities(adapted, setting.lm, setting.queries)
        for row, query in zip(table, setting.queries, strict=True):
            scores = naive_scores(expected, setting.encoder.opening, query).double()
            torch.testing.assert_close(row, scores, rtol=1e-3, atol=0)

    def test_the_weights_are_as_before_also_when_the_second_step_raises(self, family, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        readings(Lora(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations), setting)
        before.assert_restored(setting.lm.model)
        cross_entropy, calls = F.cross_entropy, []

        def second_time_fails(*args):
            calls.append(args)
            if len(calls) == 2:
                raise RuntimeError("at the second step")
            return cross_entropy(*args)

        monkeypatch.setattr(F, "cross_entropy", second_time_fails)
        with pytest.raises(RuntimeError, match="at the second step"):
            Lora(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)


def test_the_seed_decides_the_outcome_and_the_global_random_state_does_not():
    setting = fresh("llama")
    lora = Lora(setting.encoder.opening, RATE)
    first = lora.adapt(setting.lm, setting.demonstrations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = lora.adapt(setting.lm, setting.demonstrations)
    other = dataclasses.replace(lora, seed=1).adapt(setting.lm, setting.demonstrations)
    assert torch.equal(first.deltas[0].delta, again.deltas[0].delta)
    assert not torch.equal(first.deltas[0].delta, other.deltas[0].delta)
    assert first.learner == "lora"
    assert len(first.losses) == 4
    assert first.cost.tokens == sum(map(len, setting.demonstrations.sequences))


def test_a_loss_that_is_no_number_names_the_rate_and_the_step(monkeypatch):
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *args: cross_entropy(*args) * float("inf"))
    with pytest.raises(TrainingError, match=r"learning rate 0.01: the loss is inf at step 1 of 4. Use a lower one."):
        Lora(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
    before.assert_restored(setting.lm.model)


def test_weights_that_become_infinite_are_found(monkeypatch):
    setting = fresh("llama", k=1)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: self.param_groups[0]["params"][0].data.fill_(torch.inf))
    with pytest.raises(TrainingError, match=r"learning rate 0.01: the weights became infinite. Use a lower one."):
        Lora(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, r"learning rate -1\.0 must lie between 0 and 1e\+37"),
        ({"learning_rate": 0.1, "rank": 0}, "LoRA rank 0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Lora((0,), **settings)
