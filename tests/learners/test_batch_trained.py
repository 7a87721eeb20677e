import dataclasses
from functools import cache
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import get_linear_schedule_with_warmup

from dualform.errors import ConfigError, ModelError, TrainingError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.batch_trained import AllWeights, BatchTrained, Biases
from dualform.learners.batches import batches, pieces
from dualform.learners.lora import LoraWeights
from dualform.learners.prompting import ZeroShot
from dualform.learners.training_settings import LoraSettings, TrainingSettings
from dualform.models.editing.edit import applied
from dualform.models.reading.language_model import LanguageModel
from tests.learners.setting import Setting, fresh, readings, setting_of
from tests.models.editing.test_edit import IDS, Snapshot
from tests.tiny import tiny_model, tiny_tokenizer

WEIGHTS: dict[str, Any] = {"lora": LoraWeights(LoraSettings(rank=4)), "full": AllWeights(), "bitfit": Biases()}
RATES = {"lora": 1e-2, "full": 1e-3, "bitfit": 1e-2}
SHORT = TrainingSettings(epochs=2, batch_size=3)
FAMILIES = ("gpt2", "gemma3")


def learner(name: str, setting: Setting, settings: TrainingSettings = SHORT, **changes: Any) -> BatchTrained:
    method = BatchTrained(setting.encoder.opening, RATES[name], WEIGHTS[name], settings, 7, name)
    return dataclasses.replace(method, **changes)


@cache
def exact(family: str) -> Setting:
    """A model in float64 with seven demonstrations."""
    lm = LanguageModel.wrap(tiny_model(family, dtype=torch.float64), tiny_tokenizer(), family)
    return setting_of(lm, k=7)


def one_at_a_time(method: BatchTrained, setting: Setting) -> torch.Tensor:
    """The slow twin: every sequence alone, without padding; logits of the trained model."""
    lm, data, settings = setting.lm, setting.demonstrations, method.settings
    steps = batches(len(data.sequences), settings, method.seed)
    with method.weights.open(lm, method.seed) as training:
        optimiser = torch.optim.AdamW(training.parameters, lr=method.learning_rate, weight_decay=0.0)
        warmup = int(settings.warmup * len(steps))
        for step, batch in enumerate(steps):
            optimiser.param_groups[0]["lr"] = method.learning_rate * (
                step / warmup if step < warmup else (len(steps) - step) / (len(steps) - warmup)
            )
            optimiser.zero_grad()
            n = sum(data.n_answer_tokens[i] for i in batch)
            for i in batch:
                ids, answer = data.sequences[i], data.n_answer_tokens[i]
                log_probabilities = lm.model(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
                for position in range(len(ids) - answer, len(ids)):
                    (-log_probabilities[position - 1, ids[position]] / n).backward(retain_graph=True)
            norm = torch.cat(
                [parameter.grad.flatten() for parameter in training.parameters if parameter.grad is not None]
            ).norm()
            for parameter in training.parameters:
                parameter.grad *= min(1.0, settings.clip / (norm + 1e-6))
            optimiser.step()
        with torch.no_grad():
            return lm.model(IDS).logits


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_train_as_one_sequence_at_a_time(family, name):
    setting = exact(family)
    assert any(len(piece) > 1 for piece in pieces([len(ids) for ids in setting.demonstrations.sequences], range(7)))
    method = learner(name, setting)
    expected = one_at_a_time(method, setting)
    adapted = method.adapt(setting.lm, setting.demonstrations)
    with torch.no_grad():
        before = setting.lm.model(IDS).logits
        with applied(setting.lm.model, adapted.deltas):
            actual = setting.lm.model(IDS).logits
    assert (expected - before).abs().max() > 1e-3
    # The norms of gemma3 compute in float32 whatever the model's dtype, and AdamW magnifies their rounding.
    within = 1e-9 if family == "gpt2" else 2e-4
    torch.testing.assert_close(actual, expected, rtol=within, atol=within)


def test_lora_is_what_peft_and_transformers_train():
    """peft in the ordinary way, with transformers' own loss on a padded batch and its schedule."""
    setting = exact("llama")
    settings = TrainingSettings(epochs=3, batch_size=4, clip=0.5)
    weights = LoraWeights(LoraSettings(rank=4, alpha=6.0))
    adapted = learner("lora", setting, settings, weights=weights).adapt(setting.lm, setting.demonstrations)

    data, model = setting.demonstrations, tiny_model("llama", dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = peft.LoraConfig(r=4, lora_alpha=6.0, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATES["lora"], weight_decay=0)
    steps = batches(len(data.sequences), settings, 7)
    schedule = get_linear_schedule_with_warmup(optimiser, int(0.1 * len(steps)), len(steps))
    for batch in steps:
        longest = max(len(data.sequences[i]) for i in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, i in enumerate(batch):
            n = len(data.sequences[i])
            ids[row, :n] = torch.tensor(data.sequences[i])
            mask[row, :n] = 1
            labels[row, n - data.n_answer_tokens[i] : n] = ids[row, n - data.n_answer_tokens[i] : n]
        optimiser.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        expected = model.merge_and_unload().eval()(IDS).logits
        with applied(setting.lm.model, adapted.deltas):
            actual = setting.lm.model(IDS).logits
    # transformers computes its loss in float32.
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_weights_are_as_before_also_when_the_second_batch_raises(family, name, monkeypatch):
    setting = fresh(family)
    before = Snapshot(setting.lm.model)
    readings(learner(name, setting).adapt(setting.lm, setting.demonstrations), setting)
    before.assert_restored(setting.lm.model)
    cross_entropy, calls = F.cross_entropy, []

    def second_time_fails(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("at the second batch")
        return cross_entropy(*args, **options)

    monkeypatch.setattr(F, "cross_entropy", second_time_fails)
    with pytest.raises(RuntimeError, match="at the second batch"):
        learner(name, setting).adapt(setting.lm, setting.demonstrations)
    before.assert_restored(setting.lm.model)


@pytest.mark.parametrize("name", WEIGHTS)
def test_zero_epochs_and_rate_zero_are_zero_shot(name):
    setting = exact("llama")
    zero_shot = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    expected = answer_log_probabilities(zero_shot, setting.lm, setting.queries)
    for changes in ({"settings": SHORT.model_copy(update={"epochs": 0})}, {"learning_rate": 0.0}):
        adapted = learner(name, setting, **changes).adapt(setting.lm, setting.demonstrations)
        assert torch.equal(answer_log_probabilities(adapted, setting.lm, setting.queries), expected)
    trained = learner(name, setting).adapt(setting.lm, setting.demonstrations)
    assert not torch.equal(answer_log_probabilities(trained, setting.lm, setting.queries), expected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_seed_decides_the_outcome_and_the_global_random_state_does_not(name):
    setting = exact("llama")
    weights = LoraWeights(LoraSettings(rank=4, dropout=0.3)) if name == "lora" else WEIGHTS[name]
    method = learner(name, setting, weights=weights)
    first = method.adapt(setting.lm, setting.demonstrations)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        again = method.adapt(setting.lm, setting.demonstrations)
    other = dataclasses.replace(method, seed=1).adapt(setting.lm, setting.demonstrations)
    assert torch.equal(first.deltas[0].delta, again.deltas[0].delta)
    assert not torch.equal(first.deltas[0].delta, other.deltas[0].delta)
    assert first.learner == name
    assert len(first.losses) == 2 * 3


def test_dropout_changes_the_training_of_adapters_alone():
    setting = exact("llama")
    plain, dropping = (
        learner("lora", setting, weights=LoraWeights(LoraSettings(dropout=dropout))).adapt(
            setting.lm, setting.demonstrations
        )
        for dropout in (0.0, 0.5)
    )
    # The second factor starts at zero, so that the first loss is that of the model itself.
    assert plain.losses[0] == dropping.losses[0]
    assert plain.losses[2:] != dropping.losses[2:]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_full_trains_every_weight_and_a_tied_one_once(family):
    setting = fresh(family)
    adapted = learner("full", setting).adapt(setting.lm, setting.demonstrations)
    assert {delta.parameter for delta in adapted.deltas} == {name for name, _ in setting.lm.model.named_parameters()}


def test_a_model_in_half_precision_is_trained_in_float32():
    lm = LanguageModel.wrap(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer(), "llama")
    setting = setting_of(lm)
    before = Snapshot(lm.model)
    for name in WEIGHTS:
        adapted = learner(name, setting).adapt(lm, setting.demonstrations)
        assert all(delta.delta.dtype == torch.float32 for delta in adapted.deltas)
        before.assert_restored(lm.model)


def test_bitfit_trains_the_biases_of_a_model_that_has_some_and_new_ones_elsewhere():
    gpt2, llama = fresh("gpt2"), fresh("llama")
    changed = {delta.parameter for delta in learner("bitfit", gpt2).adapt(gpt2.lm, gpt2.demonstrations).deltas}
    assert changed == {name for name, _ in gpt2.lm.model.named_parameters() if name.endswith(".bias")}
    assert not any(name.endswith(".bias") for name, _ in llama.lm.model.named_parameters())
    changed = {delta.parameter for delta in learner("bitfit", llama).adapt(llama.lm, llama.demonstrations).deltas}
    linears = {name for name, module in llama.lm.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert changed == {f"{name}.bias" for name in linears - {"lm_head"}}


def test_packed_products_train_the_first_layers_biases_too():
    setting = fresh("opt")
    method = learner("bitfit", setting)
    name = "model.decoder.layers.0.self_attn.q_proj.bias"
    changes = [method.adapt(setting.lm, setting.demonstrations)]
    with setting.lm.packed_products():
        changes.append(method.adapt(setting.lm, setting.demonstrations))
    plain, packed = ({delta.parameter: delta.delta for delta in each.deltas} for each in changes)
    assert packed.keys() == plain.keys()
    torch.testing.assert_close(packed[name], plain[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("targets", ["attention", "query-value"])
def test_adapters_are_on_the_targets(targets):
    setting = fresh("llama")
    weights = LoraWeights(LoraSettings(targets=targets))
    adapted = learner("lora", setting, weights=weights).adapt(setting.lm, setting.demonstrations)
    letters = {"attention": "qkvo", "query-value": "qv"}[targets]
    expected = {f"model.layers.{i}.self_attn.{letter}_proj.weight" for i in range(2) for letter in letters}
    assert {delta.parameter for delta in adapted.deltas} == expected


def test_weight_decay_shrinks_matrices_and_no_vectors():
    setting = exact("llama")
    settings = SHORT.model_copy(update={"weight_decay": 0.5})
    method = learner("full", setting, settings)
    one, other = (
        {delta.parameter: delta.delta for delta in each.adapt(setting.lm, setting.demonstrations).deltas}
        for each in (learner("full", setting), method)
    )
    row = next(iter(set(range(300)) - {token for ids in setting.demonstrations.sequences for token in ids}))
    name = "model.embed_tokens.weight"
    weight = setting.lm.model.get_parameter(name)
    if setting.lm.model.lm_head.weight is weight:
        pytest.skip("the head trains every row of a tied embedding")
    assert name not in one or not one[name][row].any()
    factor = other[name][row] / weight[row]
    assert torch.allclose(factor, factor[0].expand_as(factor))
    assert -0.5 < factor[0] < 0


@pytest.mark.parametrize(
    ("n", "epochs", "steps"),
    [(0, 0, 0), (1, 20, 20), (4, 20, 20), (16, 20, 40), (32, 15, 60), (128, 4, 64), (999, 3, 375)],
)
def test_automatic_epochs_make_about_sixty_steps(n, epochs, steps):
    settings = TrainingSettings()
    assert settings.epochs_for(n) == epochs
    planned = batches(n, settings, 1)
    assert len(planned) == steps
    assert sorted(i for batch in planned for i in batch) == sorted(list(range(n)) * epochs)


def test_pieces_hold_every_sequence_once_with_little_padding():
    lengths = [5, 100, 6, 90, 5, 3000, 2000, 7]
    divided = pieces(lengths, range(8))
    assert sorted(i for piece in divided for i in piece) == list(range(8))
    for piece in divided:
        padded = len(piece) * max(lengths[i] for i in piece)
        assert padded <= 1.25 * sum(lengths[i] for i in piece)
        assert padded <= 4096 or len(piece) == 1


def test_a_loss_that_is_no_number_names_the_rate_and_the_step(monkeypatch):
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    cross_entropy = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **options: cross_entropy(*args, **options) * float("inf"))
    with pytest.raises(TrainingError, match=r"learning rate 0.01: the loss is inf at step 1 of 4. Use a lower one."):
        learner("lora", setting).adapt(setting.lm, setting.demonstrations)
    before.assert_restored(setting.lm.model)


def test_settings_that_cannot_be_used_are_named():
    with pytest.raises(ConfigError, match=r"learning rate -1\.0 must lie between 0 and 1e\+37"):
        BatchTrained((0,), -1.0, AllWeights(), SHORT, 1, "full")
    with pytest.raises(ValueError, match="epochs -1 must be 0 or more, or auto"):
        TrainingSettings(epochs=-1)
    with pytest.raises(ValueError, match="recipe one-pass does not use dropout: leave that out"):
        LoraSettings(recipe="one-pass", dropout=0.1)


def test_a_model_without_linears_has_no_biases_to_train(monkeypatch):
    setting = fresh("llama")
    monkeypatch.setattr("dualform.models.editing.edit.is_linear", lambda module: False)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no bias and no linear except its output head"):
        learner("bitfit", setting).adapt(setting.lm, setting.demonstrations)
