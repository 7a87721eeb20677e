"""Learners and measures on a model with momentum attention behave as without it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.folded import Folded
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.rank_one import RankOne
from dualform.models.editing.momentum import apply_momentum, momentum, momentum_of
from dualform.models.export.checkpoint import write_checkpoint
from dualform.models.loading.load import load_model
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.run import compare
from dualform.studies.experiment import Experiment
from tests.studies.small import small_config, small_experiment, small_task
from tests.tiny import tiny_model, tiny_tokenizer

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom"])


def with_momentum(family: str) -> LanguageModel:
    model = tiny_model(family, dtype=torch.float64)
    apply_momentum(model, 0.4)
    return LanguageModel.wrap(model, tiny_tokenizer(), family)


def experiment_of(family: str) -> Experiment[ComparisonConfig]:
    return replace(small_experiment(family, k=4), lm=with_momentum(family))


@FAMILIES
def test_finetuning_at_rate_zero_is_zero_shot(family: str) -> None:
    experiment = experiment_of(family)
    drawn = experiment.draw(1)
    opening = experiment.encoder.opening
    zero_shot = answer_log_probabilities(
        ZeroShot(opening).adapt(experiment.lm, drawn.encoded), experiment.lm, experiment.queries
    )
    still = answer_log_probabilities(
        Finetuned(opening, 0.0).adapt(experiment.lm, drawn.encoded), experiment.lm, experiment.queries
    )
    moved = answer_log_probabilities(
        Finetuned(opening, 1e-2).adapt(experiment.lm, drawn.encoded), experiment.lm, experiment.queries
    )
    assert torch.equal(still, zero_shot)
    assert not torch.allclose(moved, zero_shot, atol=1e-4)


@FAMILIES
def test_momentum_changes_what_finetuning_learns(family: str) -> None:
    """Gradients flow through the term: values reach later tokens by it, past softmax."""
    experiment = experiment_of(family)
    drawn = experiment.draw(1)
    with_it = Finetuned(experiment.encoder.opening, 1e-2).adapt(experiment.lm, drawn.encoded)
    plain = small_experiment(family, k=4)
    without = Finetuned(plain.encoder.opening, 1e-2).adapt(plain.lm, drawn.encoded)
    values = [i for i, change in enumerate(with_it.deltas) if change.delta.dim() == 2]
    assert any(
        not torch.allclose(with_it.deltas[i].delta, without.deltas[i].delta.to(with_it.deltas[i].delta), atol=1e-4)
        for i in values
    )


@FAMILIES
def test_rank_one_is_still_exact(family: str) -> None:
    experiment = experiment_of(family)
    drawn = experiment.draw(1)
    icl = answer_log_probabilities(
        InContext().adapt(experiment.lm, drawn.encoded), experiment.lm, experiment.queries[:3]
    )
    exact = answer_log_probabilities(
        RankOne(experiment.encoder.opening).adapt(experiment.lm, drawn.encoded), experiment.lm, experiment.queries[:3]
    )
    torch.testing.assert_close(exact, icl, atol=2e-5, rtol=0)


def test_a_fold_comes_nearer_to_the_prompt_and_is_written_with_its_momentum(tmp_path: Path) -> None:
    experiment = experiment_of("llama")
    drawn = experiment.draw(1)
    opening = experiment.encoder.opening
    texts = tuple(experiment.encoder.text(example) for example in experiment.task.split("train")[:30])
    fold = Folded(opening, texts, strength=1e-3).adapt(experiment.lm, drawn.encoded)
    assert isinstance(fold, AdaptedModel)

    def far(adapted: object) -> float:
        actual = answer_log_probabilities(adapted, experiment.lm, experiment.queries)  # type: ignore[arg-type]
        icl = answer_log_probabilities(
            InContext().adapt(experiment.lm, drawn.encoded), experiment.lm, experiment.queries
        )
        return float((actual - icl).abs().mean())

    assert far(fold) < 0.8 * far(ZeroShot(opening).adapt(experiment.lm, drawn.encoded))
    write_checkpoint(experiment.lm, fold.deltas, tmp_path / "folded", "# a card")
    loaded = load_model(str(tmp_path / "folded"), dtype="float64")
    assert momentum_of(loaded.model) == momentum_of(experiment.lm.model)
    read_back = loaded.log_probabilities(loaded.encode(opening), experiment.queries)
    torch.testing.assert_close(
        read_back, answer_log_probabilities(fold, experiment.lm, experiment.queries), atol=1e-5, rtol=0
    )


def test_every_measure_of_a_comparison_is_taken() -> None:
    plain = small_experiment("llama").lm
    config = small_config()
    without = compare(config, lm=plain, task=small_task()).result
    with momentum(plain.model, 0.4):
        result = compare(config, lm=plain, task=small_task()).result
    assert result.similarity.keys() == without.similarity.keys()
    assert result.similarity["sim_aou"].mean != without.similarity["sim_aou"].mean
    again = compare(config, lm=plain, task=small_task()).result
    assert again.similarity["sim_aou"].mean == without.similarity["sim_aou"].mean
