import pytest

from dualform.models.loading.doctor import examine
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.packed import PackedRoute
from tests.models.reference import BY_NAME, CASES, route_id, wrapped
from tests.tiny import tiny_model


@pytest.mark.parametrize("case", CASES, ids=route_id)
def test_it_finds_the_right_routes_right_and_the_wrong_ones_wrong(case):
    report = examine(wrapped(case))
    passed = {check.name.split()[1]: check.passed for check in report.checks if check.name.endswith(" = naive forward")}
    assert {name for name, right in passed.items() if right} == set(case.routes) - {"naive"}
    # The second, independent look: softmax of what is recorded, times values, is the head output.
    assert report.checks[-1].name == "softmax(scores) x values = head outputs"
    assert report.checks[-1].passed
    assert report.facts["route"] == case.routes[0]
    assert report.facts["attention reached"] == ("through the registry" if case.registry else "by intercepting softmax")
    assert report.unverified[0].startswith("W_K and W_V after the first layer")
    assert report.as_dict()["facts"] == report.facts


def test_facts_name_where_things_are():
    facts = examine(wrapped(BY_NAME["gpt2"])).facts
    assert facts["W_K (layer 0)"] == "transformer.h.0.attn.c_attn (32 rows)"
    assert facts["W_O (layer 0)"] == "transformer.h.0.attn.c_proj"
    assert facts["opening token"] == "'<s>' (0)"
    assert facts["sliding window"] == "none"
    assert facts["parameters"] == "54,144"
    for name in ("gpt_neo", "gemma3"):
        assert examine(wrapped(BY_NAME[name])).facts["sliding window"] == "16 tokens"


def test_a_route_that_raises_is_a_finding(monkeypatch):
    def raises(self, *args):
        raise RuntimeError

    lm = wrapped(BY_NAME["llama"], "naive")
    monkeypatch.setattr(PackedRoute, "read", raises)
    first = examine(lm).checks[0]
    assert (first.passed, first.deviation, first.deviation_text, first.note) == (False, None, "-", "RuntimeError: ")


def test_it_shows_what_was_compared_with_the_untouched_model():
    checks = {check.name: check for check in examine(wrapped(BY_NAME["llama"])).checks}
    assert checks["changing the last token leaves earlier logits unchanged"].deviation == 0
    own = checks["naive forward = the model's own (sdpa)"]
    assert own.passed
    assert own.deviation is not None
    assert own.deviation < 2e-5


def test_it_shows_lengths_at_which_the_model_changes(tokenizer):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
    config = {"attention_chunk_size": 30, "floor_scale": 2000}
    model = tiny_model("llama", max_position_embeddings=48, rope_parameters=rope)
    for name, value in config.items():
        setattr(model.config, name, value)
    report = examine(LanguageModel.wrap(model, tokenizer, "llama"))
    assert [
        check.passed for check in report.checks if check.name == "route packed = naive forward beyond 30 tokens"
    ] == [True]
    notes = [note.split(":")[0] for note in report.unverified if note.startswith("route")]
    assert notes == [
        "route packed beyond 48 tokens (rope_type dynamic with max_position_embeddings = 48)",
        "route packed beyond 1999 tokens (floor_scale = 2000)",
    ]
