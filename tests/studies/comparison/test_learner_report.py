from pathlib import Path

import pytest

from dualform.studies.comparison.run import compare
from tests.packages import register
from tests.studies.small import small_config, small_lm, small_task

AGAIN = """
from dualform.learners.base import Learner
from dualform.learners.finetuned import Finetuned


class Again(Learner):
    name = "again"
    changes_weights = True
    compared_inside = True

    def adapt(self, context):
        context.record({"rate": 1e-2})
        return Finetuned(context.opening, 1e-2, context.config.loss_on).adapt(context.lm, context.encoded)


AGAIN = Again()
"""


def test_a_learner_of_another_package_is_reported_with_its_facts_and_similarity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "finetuned_again.py").write_text(AGAIN, encoding="utf-8")
    register(tmp_path, "again", "1.0", {"dualform.learners": {"again": "finetuned_again:AGAIN"}})
    monkeypatch.syspath_prepend(tmp_path)
    config = small_config(learners=("zsl", "icl", "ft", "again"), controls=(), rates=(1e-2,), seeds=(1, 2))

    result = compare(config, lm=small_lm(), task=small_task()).result

    own = result.own["again"]
    assert own["facts"] == [{"rate": 1e-2}] * 2
    # It is finetuning at finetuning's rate, so it is as similar to ICL, and the same as finetuning itself.
    for measure in ("sim_aou", "sim_am", "agreement"):
        assert own["similarity"]["icl"][measure]["mean"] == pytest.approx(result.similarity[measure].mean, abs=1e-9)
    assert own["similarity"]["ft"]["sim_aou"]["mean"] == pytest.approx(1.0, abs=1e-9)
    assert result.fold is None
