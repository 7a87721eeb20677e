"""Arms that a model does not allow: left out and named when nobody asked for them, an error up front otherwise."""

import dataclasses
from typing import Any

import pytest

from dualform.errors import ModelError
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.comparison.arms import possible_arms
from dualform.studies.comparison.config import comparison_config
from dualform.studies.comparison.run import compare
from tests.families import tiny_family
from tests.models.test_families import read
from tests.studies.small import small_task
from tests.tiny import tiny_tokenizer

SMALL = {
    "k": 2,
    "seeds": (1,),
    "limit": 4,
    "selection_limit": 4,
    "resamples": 20,
    "explore": 2,
    "rates": (1e-3,),
    "lora_rates": (1e-3,),
    "fold": {"calibration": "train", "plain": "none", "texts": 8},
}


def config(**settings):
    return comparison_config("a model", "made-up", **{**SMALL, **settings})


def without(lm: LanguageModel, letter: str) -> LanguageModel:
    """The model, one projection of its last layer lost."""
    *rest, last = lm.anatomy.layers
    changes: dict[str, Any] = {letter: None, "unclear": (f"{letter} is lost",)}
    lost = dataclasses.replace(last, **changes)
    return dataclasses.replace(lm, anatomy=dataclasses.replace(lm.anatomy, layers=(*rest, lost)))


def test_everything_is_possible_where_everything_is_known():
    lm = read("bert")
    arms = possible_arms(lm, config())
    assert arms.learners == config().learners
    assert arms.controls == config().controls
    assert arms.notes == ()


def test_what_is_impossible_is_left_out_of_the_default_settings_and_named():
    arms = possible_arms(without(read("bert"), "W_K"), config())
    assert arms.learners == ("zsl", "icl", "lora", "probe", "fold")
    assert arms.controls == ()
    assert [note for note in arms.notes if note.startswith("Left out: ft") and "layer 1: W_K is lost" in note]
    arms = possible_arms(without(read("bert"), "W_O"), config())
    assert "fold" not in arms.learners
    assert "ft" in arms.learners
    assert [note for note in arms.notes if "SimAOU" in note and "layer 1: W_O is lost" in note]


@pytest.mark.parametrize(
    ("letter", "settings", "message"),
    [
        (
            "W_K",
            {"learners": ("zsl", "icl", "ft")},
            r"learner ft is impossible with this model.*W_K is lost.*zsl,icl\.",
        ),
        (
            "W_Q",
            {"learners": ("zsl", "lora"), "lora": {"recipe": "one-pass"}},
            r"learner lora is impossible.*W_Q is lost.*--learners zsl\.",
        ),
        ("W_O", {"learners": ("zsl", "fold")}, r"learner fold is impossible.*W_O is lost.*--learners zsl\."),
        ("W_O", {"controls": ("random", "mlp")}, r"control mlp is impossible.*--controls random\."),
        (
            "W_K",
            {"controls": ("random",)},
            r"control random is impossible.*compared with FT, which.*--controls none\.",
        ),
        ("W_V", {"select": "ft"}, r"select ft chooses by FT, which is impossible with this model: .*W_V is lost"),
    ],
)
def test_what_was_requested_by_name_is_an_error_before_anything_is_computed(letter, settings, message):
    lm = dataclasses.replace(without(read("bert"), letter), route=None)  # type: ignore[arg-type] # nothing may be read
    object.__setattr__(lm, "route", type("NoRoute", (), {"name": "packed"})())
    with pytest.raises(ModelError, match=message):
        compare(config(**settings), lm=lm, task=small_task())


def test_a_default_comparison_of_a_model_whose_attention_cannot_be_recorded_runs_what_is_possible():
    lm = LanguageModel.wrap(tiny_family("diffllama"), tiny_tokenizer(), "diffllama")
    result = compare(config(), lm=lm, task=small_task()).result
    assert set(result.accuracy) >= {"zsl", "icl", "lora", "probe"}
    assert not {"ft", "fold"} & set(result.accuracy)
    warnings = " ".join(result.warnings)
    for name in ("ft", "fold"):
        assert f"Left out: {name}, and the measures that need it:" in warnings
    assert "No attention can be recorded; left out: model.layers.0.self_attn: computes attention in several" in warnings


@pytest.mark.parametrize("model_type", ["gemma4_text", "laguna"])
def test_layers_of_different_shapes_are_compared_layer_by_layer(model_type):
    lm = LanguageModel.wrap(tiny_family(model_type), tiny_tokenizer(), model_type)
    result = compare(config(learners=("zsl", "icl", "ft"), controls=("random",)), lm=lm, task=small_task()).result
    for measure in ("sim_aou", "sim_am", "kendall", "direct_update"):
        per_layer = result.similarity[measure].per_layer
        assert per_layer is not None
        assert len(per_layer) == 2
