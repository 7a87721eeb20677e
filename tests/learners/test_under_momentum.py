"""Learners and measures on a model with momentum attention: what holds without it holds with it."""

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
from dualform.studies.bench import Bench
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.run import compare
from tests.studies.small import small_bench, small_config, small_task
from tests.tiny import tiny_model, tiny_tokenizer

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bloom"])


def with_momentum(family: str) -> LanguageModel:
    model = tiny_model(family, dtype=torch.float64)
    apply_momentum(model, 0.4)
    return LanguageModel.wrap(model, tiny_tokenizer(), family)


def bench_of(family: str) -> Bench[ComparisonConfig]:
    return replace(small_bench(family, k=4), lm=with_momentum(family))


@FAMILIES
def test_finetuning_at_rate_zero_is_zero_shot(family: str) -> None:
    bench = bench_of(family)
    drawn = bench.draw(1)
    opening = bench.encoder.opening
    zero_shot = answer_log_probabilities(ZeroShot(opening).adapt(bench.lm, drawn.encoded), bench.lm, bench.queries)
    still = answer_log_probabilities(Finetuned(opening, 0.0).adapt(bench.lm, drawn.encoded), bench.lm, bench.queries)
    moved = answer_log_probabilities(Finetuned(opening, 1e-2).adapt(bench.lm, drawn.encoded), bench.lm, bench.queries)
    assert torch.equal(still, zero_shot)
    assert not torch.allclose(moved, zero_shot, atol=1e-4)


@FAMILIES
def test_momentum_changes_what_finetuning_learns(family: str) -> None:
    """Gradients flow through the term: values reach later tokens by it, past softmax."""
    bench = bench_of(family)
    drawn = bench.draw(1)
    with_it = Finetuned(bench.encoder.opening, 1e-2).adapt(bench.lm, drawn.encoded)
    plain = small_bench(family, k=4)
    without = Finetuned(plain.encoder.opening, 1e-2).adapt(plain.lm, drawn.encoded)
    values = [i for i, change in enumerate(with_it.deltas) if change.delta.dim() == 2]
    assert any(
        not torch.allclose(with_it.deltas[i].delta, without.deltas[i].delta.to(with_it.deltas[i].delta), atol=1e-4)
        for i in values
    )


@FAMILIES
def test_rank_one_is_still_exact(family: str) -> None:
    bench = bench_of(family)
    drawn = bench.draw(1)
    icl = answer_log_probabilities(InContext().adapt(bench.lm, drawn.encoded), bench.lm, bench.queries[:3])
    exact = answer_log_probabilities(
        RankOne(bench.encoder.opening).adapt(bench.lm, drawn.encoded), bench.lm, bench.queries[:3]
    )
    torch.testing.assert_close(exact, icl, atol=2e-5, rtol=0)


def test_a_fold_comes_nearer_to_the_prompt_and_is_written_with_its_momentum(tmp_path: Path) -> None:
    bench = bench_of("llama")
    drawn = bench.draw(1)
    opening = bench.encoder.opening
    texts = tuple(bench.encoder.text(example) for example in bench.task.split("train")[:30])
    fold = Folded(opening, texts, strength=1e-3).adapt(bench.lm, drawn.encoded)
    assert isinstance(fold, AdaptedModel)

    def far(adapted: object) -> float:
        found = answer_log_probabilities(adapted, bench.lm, bench.queries)  # type: ignore[arg-type]
        icl = answer_log_probabilities(InContext().adapt(bench.lm, drawn.encoded), bench.lm, bench.queries)
        return float((found - icl).abs().mean())

    assert far(fold) < 0.8 * far(ZeroShot(opening).adapt(bench.lm, drawn.encoded))
    write_checkpoint(bench.lm, fold.deltas, tmp_path / "folded", "# a card")
    loaded = load_model(str(tmp_path / "folded"), dtype="float64")
    assert momentum_of(loaded.model) == momentum_of(bench.lm.model)
    read_back = loaded.log_probabilities(loaded.encode(opening), bench.queries)
    torch.testing.assert_close(read_back, answer_log_probabilities(fold, bench.lm, bench.queries), atol=1e-5, rtol=0)


def test_every_measure_of_a_comparison_is_taken() -> None:
    plain = small_bench("llama").lm
    config = small_config()
    without = compare(config, lm=plain, task=small_task()).result
    with momentum(plain.model, 0.4):
        result = compare(config, lm=plain, task=small_task()).result
    assert result.similarity.keys() == without.similarity.keys()
    assert result.similarity["sim_aou"].mean != without.similarity["sim_aou"].mean
    again = compare(config, lm=plain, task=small_task()).result
    assert again.similarity["sim_aou"].mean == without.similarity["sim_aou"].mean
