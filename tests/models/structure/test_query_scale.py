"""The factor that turns a product of two attention queries into a score, against each family's own scaling."""

import math
from typing import Any

import pytest
import torch

from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.query_scale import query_scale
from tests.tiny import tiny_model, tiny_tokenizer


def lm_of(family: str, **config: Any) -> LanguageModel:
    return LanguageModel.wrap(tiny_model(family, **config), tiny_tokenizer(), family)


# What a plain query times a plain key is multiplied by, from each family's definition.
SCALES = {
    "llama": lambda d: d**-0.5,
    "gpt2": lambda d: d**-0.5,
    "phi3": lambda d: d**-0.5,
    "opt": lambda d: d**-0.5,
    "xglm": lambda d: d**-0.5,
    "bloom": lambda d: d**-0.5,
    "gpt_neo": lambda d: 1.0,
    "gemma3": lambda d: 24**-0.5,
}


@pytest.mark.parametrize("family", SCALES)
def test_a_query_in_the_place_of_a_key_is_scaled_as_the_family_scales_its_scores(family: str) -> None:
    lm = lm_of(family)
    scale = query_scale(lm)
    d = lm.anatomy.layers[0].d_head
    # OPT and XGLM multiply W_Q's output beforehand: both recorded queries hold that factor already.
    before = d**-0.5 if family in ("opt", "xglm") else 1.0

    # A product of two recorded queries is before^2 times that of two plain ones.
    expected = torch.full((len(lm.anatomy.layers),), SCALES[family](d) / before**2, dtype=torch.float64)
    torch.testing.assert_close(scale.as_attention, expected, rtol=1e-3, atol=0)
    twice = torch.full_like(expected, 1 / d / before**2)
    torch.testing.assert_close(scale.twice, twice, rtol=1e-3, atol=0)


def test_a_model_is_measured_once_and_another_one_by_itself() -> None:
    lm, other = lm_of("llama"), lm_of("gpt_neo")

    assert query_scale(lm) is query_scale(lm)
    assert not math.isclose(float(query_scale(lm).as_attention[0]), float(query_scale(other).as_attention[0]))
