"""The prompted forward, from the zero-shot one and a change of rank one for each token and block."""

import pytest
import torch

from dualform.learners import rank_one as under_test
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.rank_one import RankOne
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.anatomy import row_axis
from dualform.ops.folding import rank_one_update
from tests.learners.setting import EVERYTHING, fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import (
    BY_NAME,
    CASES,
    OPENING,
    PREFIX,
    QUERIES,
    ROUTES,
    assert_no_hooks,
    expected_scores,
    plain,
    route_id,
    wrapped,
)

FOUR = ("llama", "gpt2", "gemma3", "gpt_neox")


def demonstrations(prefix=PREFIX):
    """Demonstrations of which only the prefix is used."""
    return EncodedDemonstrations(prefix, (), (), (), ())


def block_outputs(model, names, run):
    """Every block's output, `(pos, d_model)`, of the last forward that `run` makes, after everyone else's hooks."""
    seen, handles = {}, []

    def keep(name):
        def last(module, args, out):
            seen[name] = (out if isinstance(out, torch.Tensor) else out[0])[0]

        # Registered when the block begins, so that it runs behind the hooks that are there by then.
        return lambda module, args: handles.append(module.register_forward_hook(last))

    handles += [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in names]


def relative(actual, expected):
    """Largest deviation of a token, in units of its length."""
    return float(((actual - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_blocks_output_is_that_with_the_demonstrations(case):
    lm = wrapped(case)
    adapted = RankOne(OPENING).adapt(lm, demonstrations())
    zero_shot = ZeroShot(OPENING).adapt(lm, demonstrations())
    names = [reader.block for reader in adapted.inputs]
    for query in QUERIES:
        ids = torch.tensor([[*PREFIX, *query.prompt]])
        model = plain(case)
        expected = block_outputs(model, names, lambda ids=ids, model=model: model(input_ids=ids, use_cache=False))
        chosen = [Query(query.prompt, ((7,),))]
        own = len(query.prompt)
        actual = block_outputs(lm.model, names, lambda chosen=chosen: adapted.read_group(chosen, [0]))
        bare = block_outputs(lm.model, names, lambda chosen=chosen: zero_shot.read_group(chosen, [0]))
        for layer in range(len(names)):
            assert relative(actual[layer][-own:], expected[layer][-own:]) < 1e-5
            assert relative(bare[layer][-own:], expected[layer][-own:]) > 1e-2


@pytest.mark.parametrize(("case", "route"), ROUTES, ids=route_id)
def test_answers_are_those_of_the_prompted_model_on_every_route(case, route):
    lm = wrapped(case, route)
    adapted = RankOne(OPENING).adapt(lm, demonstrations())
    zero_shot = ZeroShot(OPENING).adapt(lm, demonstrations())
    read = adapted.read_group(QUERIES, range(len(QUERIES)))
    for i, query in enumerate(QUERIES):
        expected = expected_scores(case, PREFIX, query)
        # Nats, some -10 of them: float32 rounds each to 1e-6.
        torch.testing.assert_close(read.log_probabilities[i, : len(expected)], expected, rtol=1e-5, atol=2e-5)
    bare = zero_shot.read_group(QUERIES, range(len(QUERIES)))
    finite = torch.isfinite(bare.log_probabilities)
    assert (bare.log_probabilities - read.log_probabilities)[finite].abs().max() > 0.5


@pytest.mark.parametrize("family", FOUR)
class TestFourFamilies:
    def test_it_answers_as_icl_does_and_attends_as_zero_shot_does(self, family):
        setting = fresh(family, max_examples=2)
        adapted = RankOne(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        icl = InContext().adapt(setting.lm, setting.demonstrations)
        for first, second in zip(readings(adapted, setting), readings(icl, setting), strict=True):
            assert first.queries == second.queries
            torch.testing.assert_close(first.next_token, second.next_token, rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(first.hidden, second.hidden, rtol=1e-4, atol=1e-4)
            # The demonstrations are not there to be attended to.
            assert first.trace.demo_scores.shape[-1] == len(setting.encoder.opening)
            assert (first.trace.output - second.trace.output).abs().max() > 1e-2
        assert adapted.learner == "fold"
        assert adapted.n_prefix == icl.n_prefix == len(setting.demonstrations.prefix)

    def test_the_other_probe_is_read_as_well(self, family):
        setting = fresh(family)
        adapted = RankOne(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        icl = InContext().adapt(setting.lm, setting.demonstrations)
        everyone = range(len(setting.queries))
        first, second = (x.read_group(setting.queries, everyone, EVERYTHING, "label0") for x in (adapted, icl))
        torch.testing.assert_close(first.log_probabilities, second.log_probabilities, rtol=1e-5, atol=2e-5)

    def test_one_explicit_change_of_weights_does_it_for_one_token_and_fails_another(self, family):
        lm = LanguageModel.wrap(BY_NAME[family].model(), wrapped(BY_NAME[family]).tokenizer, family)
        adapted = RankOne(OPENING).adapt(lm, demonstrations())
        reader = adapted.inputs[0]
        queries = [Query(QUERIES[2].prompt, ()), Query(QUERIES[4].prompt, ())]

        def first_block(prefix, query):
            """Input of the MLP, residual stream there, and output of the first block at the last token, plain hooks."""
            seen: dict[str, torch.Tensor] = {}
            linear, block = lm.model.get_submodule(reader.linears[0]), lm.model.get_submodule(reader.block)
            output = lm.model.get_submodule(reader.W_O)
            norm = lm.model.get_submodule(reader.norm)
            handles = [
                linear.register_forward_hook(lambda module, args, out: seen.update(a=args[0][0, -1])),
                norm.register_forward_pre_hook(lambda module, args: seen.update(u=args[0][0, -1])),
                output.register_forward_hook(lambda module, args, out: seen.update(attention=out[0, -1])),
                block.register_forward_hook(
                    lambda module, args, out: seen.update(out=(out if torch.is_tensor(out) else out[0])[0, -1])
                ),
            ]
            with torch.no_grad():
                lm.model(input_ids=torch.tensor([[*prefix, *query.prompt]]), use_cache=False)
            for handle in handles:
                handle.remove()
            return seen["a"], seen["u"] + (seen["attention"] if reader.parallel else 0), seen["out"]

        bare = [first_block(OPENING, query) for query in queries]
        prompted = [first_block(PREFIX, query) for query in queries]
        deltas = []
        for name in reader.linears:
            module = lm.model.get_submodule(name)
            weight = module.weight.detach()
            transposed = row_axis(module) == 1
            a, da = bare[0][0], prompted[0][0] - bare[0][0]
            dW = rank_one_update(weight.mT if transposed else weight, a, da)
            deltas.append(WeightDelta(f"{name}.weight", row_axis(module), None, dW.mT if transposed else dW))
        with applied(lm.model, deltas):
            changed = [first_block(OPENING, query) for query in queries]
        handed_on = changed[0][2] + prompted[0][1] - bare[0][1]
        assert relative(handed_on, prompted[0][2]) < 1e-5
        # What the learner does in factors is the same.
        names = [item.block for item in adapted.inputs]
        learners = block_outputs(lm.model, names, lambda: adapted.read_group(queries[:1], [0]))
        assert relative(handed_on, learners[0][-1]) < 1e-5
        # The change was made for one query; the other's block output it does not give.
        wrong = changed[1][2] + prompted[0][1] - bare[0][1]
        assert relative(wrong, prompted[1][2]) > 1e-2

    def test_weights_and_hooks_are_as_before_also_when_the_change_raises(self, family, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        enabled = []
        handle = setting.lm.model.register_forward_pre_hook(lambda *seen: enabled.append(torch.is_grad_enabled()))
        adapted = RankOne(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        readings(adapted, setting)
        handle.remove()
        assert enabled
        assert not any(enabled)
        before.assert_restored(setting.lm.model)
        monkeypatch.setattr(under_test, "rank_one_factors", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adapted.read_group(setting.queries, [0])
        before.assert_restored(setting.lm.model)


def test_without_demonstrations_it_is_zero_shot():
    setting = fresh("gpt2", k=0)
    adapted = RankOne(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    zero_shot = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    for first, second in zip(readings(adapted, setting), readings(zero_shot, setting), strict=True):
        assert torch.equal(first.log_probabilities, second.log_probabilities)
        assert torch.equal(first.trace.output, second.trace.output)


@pytest.mark.parametrize("case", [BY_NAME["llama"], BY_NAME["mpt"]], ids=str)
def test_without_an_opening_it_works_as_well(case):
    lm = wrapped(case)
    adapted = RankOne(()).adapt(lm, demonstrations())
    read = adapted.read_group(QUERIES, [0, 2])
    expected = torch.stack([expected_scores(case, PREFIX, QUERIES[0])[0], expected_scores(case, PREFIX, QUERIES[2])[0]])
    torch.testing.assert_close(read.log_probabilities[:, 0], expected, rtol=1e-5, atol=2e-5)


def test_adapting_costs_the_two_prefixes_alone():
    lm = wrapped(BY_NAME["llama"])
    cost = RankOne(OPENING, name="exact").adapt(lm, demonstrations()).cost
    assert cost.tokens == len(PREFIX) + len(OPENING)
    lengths = (len(PREFIX), len(OPENING))
    assert cost.flops == sum(lm.shape.forward(own=n, scored=0) for n in lengths)
    assert cost.seconds > 0
    assert_no_hooks(lm.model)


@pytest.mark.real
def test_on_a_real_model_it_answers_as_icl_does():
    from dualform.models.loading.load import load_model

    lm = load_model("smollm2-135m", device="cpu")
    texts = ("a warm and funny film", "nothing here works", "a dull story, told twice", "wit and grace")
    words = tuple(tuple(lm.tokenizer(word)["input_ids"]) for word in (" negative", " positive"))
    queries = [Query(tuple(lm.tokenizer(f"Review: {text} Sentiment:")["input_ids"]), words) for text in texts]
    assert lm.bos is not None
    opening = (lm.bos,)
    prefix = opening + sum(((*queries[i].prompt, *words[1 - i], *opening) for i in (0, 1)), ())
    examples = demonstrations(prefix)
    learners = RankOne(opening), InContext(), ZeroShot(opening)
    actual, icl, zero_shot = (learner.adapt(lm, examples).read_group(queries, range(4)) for learner in learners)
    # Thirty layers of float32: as far as two routes' roundings lie apart.
    torch.testing.assert_close(actual.next_token, icl.next_token, rtol=0, atol=1e-3)
    assert (zero_shot.log_probabilities - icl.log_probabilities).abs().max() > 0.1
