"""Texts that a model writes: sampled as the obvious loop samples them, and only fit ones kept."""

import contextlib
import dataclasses
import re

import pytest
import torch

import dualform.models.reading.generation as under_test
from dualform.errors import ConfigError, ContextError, ModelError, NumericalError
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.generation import generate_plain, generate_texts
from dualform.models.reading.language_model import LanguageModel
from dualform.tasks.task import Example, Task, Template
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import BY_NAME, assert_no_hooks, plain, wrapped
from tests.models.sentiment import sentiment, some_demonstrations
from tests.tiny import FAMILIES, POSITIONS, tiny_model, tiny_tokenizer

# A random model says " Sentiment:" once in the age of the universe; it says an "e" after some dozen tokens.
TEMPLATE = Template("Review: {text}e")


@dataclasses.dataclass(frozen=True)
class Setting:
    lm: LanguageModel
    task: Task
    encoder: Encoder
    demonstrations: EncodedDemonstrations

    def write(self, n=4, seed=0, **settings):
        return generate_texts(self.lm, self.task, self.encoder, self.demonstrations, n, seed=seed, **settings)


def build_setting(family="llama", template=TEMPLATE, k=3, lm=None, **fields):
    lm = wrapped(BY_NAME[family]) if lm is None else lm
    task = sentiment()
    splits = {
        name: tuple(dataclasses.replace(example, fields={**example.fields, **fields}) for example in examples)
        for name, examples in task.splits.items()
    }
    task = dataclasses.replace(task, splits=splits, template=template)
    encoder = Encoder(lm, task)
    return Setting(lm, task, encoder, encoder.demonstrations(some_demonstrations(task, k)))


def text_of(ids):
    return tiny_tokenizer().decode(list(ids))


def obvious(model, start, head, n, max_tokens, temperature, top_p, generator):
    """Sampling with a whole forward for every token; `head` ids are the first ones of the text."""
    texts: list[str | None] = [None] * n
    rows: dict[int, list[int]] = {number: [] for number in range(n)}
    for _ in range(max_tokens):
        ids = torch.tensor([[*start, *own] for own in rows.values()])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[:, -1].double()
        probabilities = (logits / temperature).softmax(-1)
        ordered, order = probabilities.sort(-1, descending=True)
        for row in ordered:
            kept = 1
            while kept < len(row) and float(row[:kept].sum()) < top_p:
                kept += 1
            row[kept:] = 0
        drawn = order.gather(1, torch.multinomial(ordered, 1, generator=generator))[:, 0].tolist()
        for (number, own), token in zip(list(rows.items()), drawn, strict=True):
            if token in (0, 1):
                del rows[number]
                continue
            own.append(token)
            text = text_of([*head, *own])
            if "e" in text[len("Review:") :]:
                texts[number] = text[: text.index("e", len("Review:")) + 1]
                del rows[number]
        if not rows:
            break
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_it_samples_the_same_as_a_plain_loop(family, monkeypatch):
    setting = build_setting(family)
    settings = {"temperature": 1.5, "top_p": 0.9}
    sampled = []
    write = under_test._Writer.write

    def keep(self, n):
        sampled.append(write(self, n))
        return sampled[-1]

    monkeypatch.setattr(under_test._Writer, "write", keep)
    with contextlib.suppress(ModelError):
        # Eight samples, five side by side and then three; few of them make texts.
        setting.write(8, rows=5, max_tokens=12, tries_per_text=1, **settings)
    generator = torch.Generator().manual_seed(0)
    head = tiny_tokenizer()("Review:")["input_ids"]
    start = (*setting.demonstrations.prefix, *head)
    expected = [obvious(plain(BY_NAME[family]), start, head, n, 12, 1.5, 0.9, generator) for n in (5, 3)]
    assert sampled == expected
    assert any(text is not None for text in expected[0])


@pytest.mark.parametrize("family", ["llama", "gpt2", "xglm"])
class TestThreeFamilies:
    def test_a_prompt_has_the_tokens_of_a_real_query(self, family):
        setting = build_setting(family)
        prompts = setting.write(5)
        assert len(set(prompts)) == 5
        for ids in prompts:
            text = text_of(ids)
            match = re.fullmatch(r"Review: (.*)e", text, re.DOTALL)
            assert match
            assert match[1].strip()
            assert "e" not in match[1]
            assert setting.encoder.query(Example({"text": match[1]}, 0, 0)).prompt == ids

    def test_the_seed_decides_what_is_written(self, family):
        setting = build_setting(family)
        assert setting.write(seed=1) == setting.write(seed=1)
        assert setting.write(seed=1) != setting.write(seed=2)

    def test_the_demonstrations_decide_too(self, family):
        assert build_setting(family).write() != build_setting(family, k=1).write()

    def test_the_model_is_as_before_and_no_gradient_is_ever_taken(self, family):
        setting = build_setting(family, lm=LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family))
        before = Snapshot(setting.lm.model)
        state = torch.get_rng_state()
        enabled = []
        handle = setting.lm.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
        setting.write()
        handle.remove()
        assert enabled
        assert not any(enabled)
        before.assert_restored(setting.lm.model)
        assert_no_hooks(setting.lm.model)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def written(monkeypatch):
    """Let the model write these texts, in order, whatever it is; None never came to the tail."""

    def script(*texts):
        left = list(texts)

        def write(self, n):
            return [left.pop(0) if left else None for _ in range(n)]

        monkeypatch.setattr(under_test._Writer, "write", write)

    return script


class TestWhatIsKept:
    def test_copies_of_demonstrations_and_duplicates_are_thrown_away(self, written):
        setting = build_setting(template=Template("Review: {text} Sentiment:"), k=2)
        demonstrations = [example.fields["text"] for example in some_demonstrations(setting.task, 2).examples]
        texts = [f"Review: {text} Sentiment:" for text in (*demonstrations, "a film", "a  film", "a film")]
        written(*texts, None, "Review: two Sentiment:", "Review: three Sentiment:")
        texts_written = [text_of(ids) for ids in setting.write(3)]
        assert texts_written == ["Review: a film Sentiment:", "Review: a  film Sentiment:", "Review: two Sentiment:"]

    def test_space_around_a_text_is_removed(self, written):
        setting = build_setting(template=Template("Review: {text}\nSentiment:", separator="\n\n"))
        written("Review:  fine \nSentiment:", "Review:\nSentiment:", "Review: \nSentiment:", "Review: \n \nSentiment:")
        assert [text_of(ids) for ids in setting.write(1)] == ["Review: fine\nSentiment:"]
        written("Review:\nSentiment:", "Review: \nSentiment:", "Review: \n \nSentiment:")
        with pytest.raises(ModelError, match="3 did not follow the template"):
            setting.write(1, tries_per_text=3)

    def test_a_text_that_runs_into_the_next_one_is_thrown_away(self, written):
        setting = build_setting(template=Template("Review: {text}\nSentiment:", separator="\n\n"))
        written("Review: one\n\nReview: two\nSentiment:", "Review: three\nSentiment:")
        assert [text_of(ids) for ids in setting.write(1)] == ["Review: three\nSentiment:"]

    def test_every_field_of_a_template_must_come_and_repeats_must_agree(self, written):
        template = Template("{premise} Question: {hypothesis}. {{True}} or {premise}? Answer:")
        setting = build_setting(template=template, premise="wit", hypothesis="grace")
        written(
            "it rains Question: it is wet. {True} or it rains? Answer:",
            "it rains Question: it is wet. {True} or it snows? Answer:",
            "it rains. {True} or it rains? Answer:",
            " a Question: b. {True} or a? Answer:",
        )
        texts_written = [text_of(ids) for ids in setting.write(2)]
        assert texts_written == [
            "it rains Question: it is wet. {True} or it rains? Answer:",
            "a Question: b. {True} or a? Answer:",
        ]

    def test_too_few_texts_are_counted_with_their_reasons(self, written):
        setting = build_setting(template=Template("Review: {text} Sentiment:"))
        written("Review: a Sentiment:", "Review: a Sentiment:", None, None, "Review: Sentiment:")
        message = (
            "llama wrote 1 of 3 usable texts in 6 tries (3 did not reach ' Sentiment:' within 7 tokens; 1 were copies "
            "of demonstrations or of one another; 1 did not follow the template). Give your own texts with "
            "--calibration, or request fewer."
        )
        with pytest.raises(ModelError, match=re.escape(message)):
            setting.write(3, max_tokens=7, tries_per_text=2)

    def test_no_more_texts_are_returned_than_requested(self, written):
        setting = build_setting(template=Template("Review: {text} Sentiment:"))
        written(*(f"Review: {number} Sentiment:" for number in range(9)))
        assert len(setting.write(2)) == 2


def test_the_likeliest_token_alone_writes_one_text_over_and_over():
    setting = build_setting()
    with pytest.raises(ModelError, match=r"llama wrote [01] of 3 usable texts in 6 tries"):
        setting.write(3, top_p=1e-9, tries_per_text=2)
    # With all tokens in play it writes three.
    assert len(setting.write(3, top_p=1.0)) == 3


def test_a_template_without_words_at_its_end_is_named():
    setting = build_setting(template=Template("Review: {text}"))
    with pytest.raises(ConfigError, match=re.escape("the prompt 'Review: {text}' ends in a field")):
        setting.write()


def test_a_template_that_begins_with_a_field_is_written_from_the_start():
    setting = build_setting(template=Template("{text}e"))
    for ids in setting.write(3):
        text = text_of(ids)
        assert text.index("e") == len(text) - 1
        assert text[0] == text.strip()[0]


def test_a_missing_first_token_is_named():
    setting = build_setting(template=Template("{text}e"), k=0)
    nothing = dataclasses.replace(setting.demonstrations, prefix=())
    with pytest.raises(ConfigError, match="there is no token to begin with"):
        dataclasses.replace(setting, demonstrations=nothing).write()


def test_demonstrations_that_fill_the_context_are_named():
    setting = build_setting("gpt2")
    n_head = len(tiny_tokenizer()("Review:")["input_ids"])
    full = dataclasses.replace(setting.demonstrations, prefix=(5,) * (POSITIONS - n_head))
    with pytest.raises(ContextError, match=f"take {POSITIONS} tokens of a context of {POSITIONS}"):
        dataclasses.replace(setting, demonstrations=full).write()
    # The last position is written to, and no further.
    almost = dataclasses.replace(setting.demonstrations, prefix=(5,) * (POSITIONS - n_head - 3))
    with pytest.raises(ModelError, match="within 3 tokens"):
        dataclasses.replace(setting, task=sentiment(), demonstrations=almost).write()


def test_a_model_that_gives_nan_is_named():
    lm = LanguageModel.wrap(tiny_model("gpt2"), tiny_tokenizer(), "gpt2")
    setting = build_setting(lm=lm)
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match=re.escape("gpt2 in torch.float32: a logit is NaN")):
        setting.write()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n 0 must be at least 1"),
        ({"max_tokens": 0, "rows": -1}, "max_tokens 0 must be at least 1; rows -1 must be at least 1"),
        ({"tries_per_text": 0}, "tries_per_text 0 must be"),
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"top_p": 0.0}, "top_p 0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p 1.5 must be"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_setting().write(**settings)


@pytest.mark.parametrize("kept", [(1, 2), (0, 2), (0, 1, 1), (2, 2)], ids=str)
def test_layers_that_skip_or_share_places_in_the_cache_are_read_whole(kept):
    model = tiny_model("llama", num_hidden_layers=3)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in kept])
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "llama")
    sampler = under_test._Sampler(lm, (0, 30, 31, 32), torch.Generator().manual_seed(0), 1.0, 1e-6)
    sampled: list[int] = []

    def keep(number: int, token: int) -> bool:
        sampled.append(token)
        return True

    sampler.run(1, 5, keep)
    row = [0, 30, 31, 32]
    for _ in range(5):
        with torch.no_grad():
            row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
    assert sampled == row[4:]


class TestPlainText:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "xglm", "bloom", "gemma3"])
    def test_plain_text_is_the_same_as_from_a_plain_loop(self, family):
        sampled = generate_plain(wrapped(BY_NAME[family]), (0,), 5, 20, seed=3, temperature=1.5, top_p=0.9, rows=3)
        generator = torch.Generator().manual_seed(3)
        expected = []
        for n in (3, 2):
            rows: list[list[int]] = [[0] for _ in range(n)]
            for _ in range(20):
                with torch.no_grad():
                    logits = plain(BY_NAME[family])(input_ids=torch.tensor(rows), use_cache=False).logits[:, -1]
                logits[:, :2] = -torch.inf
                ordered, order = (logits.double() / 1.5).softmax(-1).sort(-1, descending=True)
                for row in ordered:
                    row[1 + int((row.cumsum(0) < 0.9).sum()) :] = 0
                drawn = order.gather(1, torch.multinomial(ordered, 1, generator=generator))[:, 0]
                rows = [[*row, token] for row, token in zip(rows, drawn.tolist(), strict=True)]
            expected += [tuple(row[1:]) for row in rows]
        assert sampled == tuple(expected)

    def test_every_text_is_of_full_length_and_without_special_tokens(self):
        texts = generate_plain(wrapped(BY_NAME["llama"]), (0,), 40, 30, seed=0, temperature=3.0, top_p=1.0)
        assert [len(text) for text in texts] == [30] * 40
        assert not {0, 1} & {token for text in texts for token in text}
        assert len(set(texts)) == 40
        # Where they may be drawn, they are.
        sampler = under_test._Sampler(wrapped(BY_NAME["llama"]), (0,), torch.Generator().manual_seed(0), 3.0, 1.0)
        seen: list[int] = []
        sampler.run(16, 100, lambda number, token: seen.append(token) or True)  # type: ignore[func-returns-value]
        assert {0, 1} & set(seen)

    def test_the_seed_decides_what_is_written_and_the_model_is_as_before(self):
        lm = LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), "llama")
        before = Snapshot(lm.model)
        first, again, other = (generate_plain(lm, (0,), 2, 8, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
        before.assert_restored(lm.model)

    def test_a_context_that_is_too_short_is_named(self):
        lm = wrapped(BY_NAME["gpt2"])
        assert len(generate_plain(lm, (0,), 1, POSITIONS - 1, seed=0)[0]) == POSITIONS - 1
        with pytest.raises(ContextError, match=f"a text of {POSITIONS} do not fit into a context of {POSITIONS}"):
            generate_plain(lm, (0,), 1, POSITIONS, seed=0)

    def test_a_model_without_an_opening_token_or_a_bad_setting_is_named(self):
        lm = wrapped(BY_NAME["gpt2"])
        with pytest.raises(ConfigError, match="gpt2 has no opening token"):
            generate_plain(lm, (), 1, 5, seed=0)
        with pytest.raises(ConfigError, match="length 0 must be at least 1; rows 0 must be at least 1"):
            generate_plain(lm, (0,), 1, 0, seed=0, rows=0)
