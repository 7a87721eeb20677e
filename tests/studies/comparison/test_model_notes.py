"""What is known of how a model was loaded stands in the result of every study that uses it."""

import dataclasses
from pathlib import Path

import pytest

from dualform.models.loading.doctor import examine
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.comparison.run import compare
from dualform.studies.folding.config import folding_config
from dualform.studies.folding.run import folding
from dualform.studies.selection.config import selection_config
from dualform.studies.selection.run import selection
from dualform.studies.stability.config import stability_config
from dualform.studies.stability.run import stability
from tests.studies.small import small_config, small_lm, small_task

NOTE = "The file has weights that the config has no place for."


@pytest.fixture
def noted() -> LanguageModel:
    return dataclasses.replace(small_lm(), notes=(NOTE,))


def test_a_comparison_warns_of_it(noted: LanguageModel) -> None:
    config = small_config(seeds=(1,), learners=("zsl", "icl"))
    result = compare(config, lm=noted, task=small_task()).result
    assert NOTE in result.warnings
    assert result.model["notes"] == [NOTE]
    assert compare(config, lm=small_lm(), task=small_task()).result.model["notes"] == []


def test_a_selection_warns_of_it(noted: LanguageModel) -> None:
    config = selection_config(
        "tiny", "toy", k=2, seeds=(1, 2), rates=(1e-3,), limit=4, selection_limit=4, untouched_limit=4, resamples=20
    )
    assert NOTE in selection(config, lm=noted, task=small_task()).result.warnings


def test_a_study_of_stability_warns_of_it_by_the_name_of_the_model(noted: LanguageModel) -> None:
    config = stability_config(("tiny",), "toy", k=2, seeds=(1, 2), ft_seeds=0, label_seeds=0, orders=2, limit=4)
    result = stability(config, lms=[noted], task=small_task()).result
    assert f"tiny: {NOTE}" in result.warnings


def test_a_study_of_folding_warns_of_it(noted: LanguageModel, tmp_path: Path) -> None:
    prose = tmp_path / "prose.txt"
    prose.write_text("a cold and plain morning, and with wit and grace it went\n", encoding="utf-8")
    config = folding_config(
        "tiny", "toy", k=2, seeds=(1,), limit=4, selection_limit=4, axes=("method",), methods=("rank-one",),
        resamples=20, ft=False, perplexity=None,
        fold={"texts": 8, "plain": str(prose)},
    )  # fmt: skip
    assert NOTE in folding(config, lm=noted, task=small_task()).result.warnings


def test_doctor_lists_it(noted: LanguageModel) -> None:
    assert examine(noted).notes == (NOTE,)
    assert examine(small_lm()).notes == ()
