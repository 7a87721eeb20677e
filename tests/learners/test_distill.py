import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS
from dualform.learners.distill import Distilled, prompted_log_probabilities, summed_divergence
from dualform.learners.lora import LoraWeights
from dualform.learners.prompting import ZeroShot
from dualform.learners.training_settings import LoraSettings, TrainingSettings
from dualform.models.editing.edit import applied
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.studies.folds import fold_texts
from tests.learners.contexts import context_of
from tests.learners.setting import Setting, assert_same_readings, fresh, readings, setting_of
from tests.models.editing.test_edit import Snapshot
from tests.studies.small import small_config, small_experiment, small_lm
from tests.tiny import tiny_model, tiny_tokenizer

SHORT = TrainingSettings(epochs=2, batch_size=5)


def texts_of(setting: Setting, n: int = 12) -> tuple[Query, ...]:
    """Unlabelled texts of different lengths: the queries' tokens, rotated, some without their first ones."""
    prompts = [query.prompt for query in setting.queries]
    rotated = [(prompts[i % len(prompts)], i // len(prompts) + 1, i % 3) for i in range(n)]
    return tuple(Query((*ids[turn:-1], *ids[cut:turn], ids[-1]), ((5,), (6, 7))) for ids, turn, cut in rotated)


def distilled(setting: Setting, **changes: Any) -> Distilled:
    weights = LoraWeights(LoraSettings(rank=4))
    method = Distilled(setting.encoder.opening, texts_of(setting), 1e-2, weights, SHORT, 7)
    return dataclasses.replace(method, **changes)


def divergences(setting: Setting, texts: tuple[Query, ...], deltas: Any = ()) -> torch.Tensor:
    """The slow twin: KL of every text by plain forwards of transformers, without padding, cache or packing."""
    model, found = setting.lm.model, []
    with torch.no_grad():
        for text in texts:
            prompted = model(torch.tensor([[*setting.demonstrations.prefix, *text.prompt]])).logits[0, -1]
            with applied(model, deltas):
                alone = model(torch.tensor([[*setting.encoder.opening, *text.prompt]])).logits[0, -1]
            p, log_q = prompted.softmax(dim=-1), alone.log_softmax(dim=-1)
            found.append(F.kl_div(log_q, p, reduction="sum"))
    return torch.stack(found)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_loss_is_the_divergence_of_plain_forwards(family: str):
    lm = LanguageModel.wrap(tiny_model(family, dtype=torch.float64), tiny_tokenizer(), family)
    setting = setting_of(lm)
    texts = texts_of(setting)
    assert len({len(text.prompt) for text in texts}) > 1
    expected = divergences(setting, texts)
    assert expected.min() > 0
    teacher = prompted_log_probabilities(lm, setting.demonstrations, texts)
    alone = [(*setting.encoder.opening, *text.prompt) for text in texts]
    each = torch.stack([summed_divergence(lm, [ids], teacher[[i]]).detach() for i, ids in enumerate(alone)])
    # The norms of gemma3 compute in float32 whatever the model's dtype.
    within = 2e-4 if family == "gemma3" else 1e-5
    torch.testing.assert_close(each, expected.to(each.dtype), rtol=within, atol=1e-7)
    together = summed_divergence(lm, alone, teacher).detach()
    torch.testing.assert_close(together, expected.sum().to(together.dtype), rtol=within, atol=1e-7)
    # The first loss of training is the mean over the first batch, here all texts.
    method = distilled(setting, settings=TrainingSettings(epochs=1, batch_size=len(texts)))
    losses = method.adapt(lm, setting.demonstrations).losses
    assert losses == pytest.approx([float(expected.mean())], rel=within)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_lowers_the_divergence_also_on_other_texts(family: str):
    setting = fresh(family)
    texts = texts_of(setting, 24)
    seen, other = texts[::2], texts[1::2]
    method = distilled(setting, texts=seen, settings=TrainingSettings(epochs=15, batch_size=4))
    adapted = method.adapt(setting.lm, setting.demonstrations)
    for some in (seen, other):
        before, after = divergences(setting, some).mean(), divergences(setting, some, adapted.deltas).mean()
        assert after < 0.5 * before
    assert adapted.n_prefix == len(setting.encoder.opening)


def test_the_seed_decides_everything_and_the_model_is_restored():
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    first, again, other = (
        distilled(setting, seed=seed).adapt(setting.lm, setting.demonstrations) for seed in (7, 7, 8)
    )
    before.assert_restored(setting.lm.model)
    assert first.losses == again.losses != other.losses
    for delta, same in zip(first.deltas, again.deltas, strict=True):
        assert torch.equal(delta.delta, same.delta)


def test_no_trace_is_left_where_training_raises(monkeypatch: pytest.MonkeyPatch):
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    calls = []

    def failing(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("interrupted")
        return summed_divergence(*arguments)

    monkeypatch.setattr("dualform.learners.distill.summed_divergence", failing)
    with pytest.raises(RuntimeError, match="interrupted"):
        distilled(setting).adapt(setting.lm, setting.demonstrations)
    before.assert_restored(setting.lm.model)


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"settings": TrainingSettings(epochs=0)}])
def test_without_training_it_is_zero_shot(changes: dict[str, Any]):
    setting = fresh("llama")
    adapted = distilled(setting, **changes).adapt(setting.lm, setting.demonstrations)
    plain = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    assert_same_readings(readings(adapted, setting), readings(plain, setting))


def test_without_demonstrations_there_is_nothing_to_distil():
    setting = fresh("llama", k=0)
    method = distilled(setting)
    adapted = method.adapt(setting.lm, setting.demonstrations)
    assert (adapted.deltas, adapted.losses, adapted.cost.tokens, adapted.cost.flops) == ((), (), 0, 0)
    plain = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    assert_same_readings(readings(adapted, setting), readings(plain, setting))


def test_a_negative_rate_is_refused():
    with pytest.raises(ConfigError, match="-1"):
        distilled(fresh("llama"), learning_rate=-1.0)


def test_in_a_study_it_reads_the_texts_of_the_fold():
    settings = {"texts": 10, "plain": "none"}
    experiment = small_experiment(
        learners=("icl", "distill"), k=2, controls=(), fold=settings, training={"epochs": 1, "batch_size": 4}
    )
    facts: dict[str, Any] = {}
    context = dataclasses.replace(context_of(experiment, facts=facts), rate=1e-2)
    learner = LEARNERS["distill"]
    adapted: Any = learner.adapt(context)
    texts = fold_texts(experiment, context.drawn, experiment.config.fold)
    assert facts == {"texts": len(texts.texts), "source": texts.source} == {"texts": 10, "source": "train"}
    expected = Distilled(
        context.opening, texts.texts, 1e-2, LoraWeights(LoraSettings()), experiment.config.training, context.seed
    ).adapt(context.lm, context.encoded)
    assert adapted.losses == expected.losses
    tables = [answer_log_probabilities(each, context.lm, experiment.queries) for each in (adapted, expected)]
    assert torch.equal(*tables)
    assert learner.work(context).charged.flops(context.lm.shape) == adapted.cost.flops
    assert learner.extra_bytes(experiment) > LEARNERS["lora"].extra_bytes(experiment)


def test_generated_texts_are_paid_for(monkeypatch: pytest.MonkeyPatch):
    fold = {"texts": 8, "calibration": "generated", "plain": "none"}
    experiment = small_experiment(learners=("icl", "distill"), k=2, controls=(), fold=fold, training={"epochs": 0})
    facts: dict[str, Any] = {}
    context = dataclasses.replace(context_of(experiment, facts=facts), rate=1e-2)
    # An untrained model writes nothing that can be used.
    prompts = [(*query.prompt[1:-1], query.prompt[0], query.prompt[-1]) for query in experiment.queries[:4]] * 2
    monkeypatch.setattr("dualform.studies.folds.generate_texts", lambda *arguments, **options: prompts)
    adapted = LEARNERS["distill"].adapt(context)
    assert facts["source"] == "generated"
    written = fold_texts(experiment, context.drawn, experiment.config.fold).texts
    # Each text is written once and read once after the demonstrations, which are encoded once.
    assert adapted.cost.tokens == 2 * sum(len(text.prompt) for text in written) + len(context.encoded.prefix)


def test_the_one_pass_recipe_is_refused():
    config = small_config(learners=("icl", "distill"), controls=(), lora={"recipe": "one-pass"})
    with pytest.raises(ModelError, match="the recipe one-pass cannot be used: leave out distill"):
        LEARNERS["distill"].check(small_lm("llama"), config)
