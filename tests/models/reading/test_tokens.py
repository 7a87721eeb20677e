"""Text to token ids, under tokenizers of the kinds that real models have."""

import dataclasses

import pytest
import tokenizers as tk
import transformers

from dualform.errors import ConfigError, LabelWordError, ModelError
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.tokens import TextTokenizer, opening_tokens
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.task import Example, Template
from tests.models.reference import BY_NAME, wrapped
from tests.models.sentiment import sentiment
from tests.tiny import VOCABULARY, tiny_model, tiny_tokenizer

# Letters are tokens here, and all answers begin with the same one.
pytestmark = pytest.mark.filterwarnings("ignore:label words .* begin with the same token")

SPACE = "▁"
LETTERS = (*"abcdefghijklmnopqrstuvwxyzRST:.,<>/|", SPACE)
HEAD = ("<s>", "<pad>", "</s>", "<unk>")
PROMPT = "Text: {text}\nTone:"


def fast(backend, **settings):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def byte_level(*extra, template=None, **settings):
    """As GPT-2's: nothing is unknown, and nothing is added to a text."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens(list(extra))
    if template is not None:
        backend.post_processor = tk.processors.TemplateProcessing(
            single=template,
            special_tokens=[(token, backend.token_to_id(token)) for token in template.split() if token != "$A"],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"bos_token": "<s>", "eos_token": "</s>", **settings}
    )


def sentencepiece(first):
    """As Llama 2's: a space before the first word of a text, bytes for what is unknown.

    Args:
        first: The newer way of writing that space, else the older one.
    """
    vocab = {token: i for i, token in enumerate([*HEAD, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS])}
    backend = tk.Tokenizer(tk.models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if first:
        backend.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        backend.normalizer = tk.normalizers.Sequence(
            [tk.normalizers.Prepend(SPACE), tk.normalizers.Replace(" ", SPACE)]
        )
    return fast(backend)


def unigram(line_breaks=False):
    """As XGLM's: a space before every word, line breaks are spaces, and names of special tokens are pieces."""
    pieces = [*((name, 0.0) for name in HEAD), *((letter, -3.0) for letter in LETTERS), (f"{SPACE}Text", -2.0)]
    backend = tk.Tokenizer(tk.models.Unigram(pieces, unk_id=3))
    cleaning = [tk.normalizers.Replace(tk.Regex(" {2,}"), " ")]
    backend.normalizer = tk.normalizers.Sequence(([] if line_breaks else [tk.normalizers.Nmt()]) + cleaning)
    backend.pre_tokenizer = tk.pre_tokenizers.Metaspace(prepend_scheme="always")
    return fast(backend)


MAKERS = {
    "byte-level": byte_level,
    "llama": lambda: sentencepiece(True),
    "llama, legacy": lambda: sentencepiece(False),
    "xglm": unigram,
    "byt5, in Python": lambda: transformers.ByT5Tokenizer(extra_ids=0, bos_token="</s>"),
}


@pytest.fixture(scope="module")
def base():
    return wrapped(BY_NAME["llama"])


def under(base: LanguageModel, tokenizer) -> LanguageModel:
    return LanguageModel(base.name, base.model, tokenizer, base.anatomy, base.route, base.refused)


def texts_of(tokenizer, base):
    return TextTokenizer(tokenizer, base.model, "tiny")


def own_ids(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


class TestOpening:
    @pytest.mark.parametrize(
        ("template", "settings", "expected"),
        [
            ("</s> $A", {}, ("</s>",)),
            ("<s> $A </s>", {}, ("<s>",)),
            ("[gMASK] <sop> $A", {"bos_token": None}, ("[gMASK]", "<sop>")),
            ("$A </s>", {}, ("<s>",)),
            (None, {}, ("<s>",)),
            (None, {"bos_token": None}, ("</s>",)),
            (None, {"bos_token": None, "eos_token": None}, ()),
        ],
    )
    def test_it_is_what_the_tokenizer_adds_else_its_bos_or_eos_token(self, template, settings, expected):
        tokenizer = byte_level("[gMASK]", "<sop>", template=template, **settings)
        opening = opening_tokens(tokenizer)
        assert opening.tokens == expected
        assert opening.ids == tuple(tokenizer.convert_tokens_to_ids(list(expected)))

    def test_only_an_opening_that_differs_from_the_tokenizers_own_is_noted(self):
        assert opening_tokens(byte_level(template="<s> $A")).note is None
        note = opening_tokens(byte_level()).note
        assert note is not None
        assert "'<s>'" in note
        assert "adds nothing before a text" in note
        note = opening_tokens(byte_level(template="</s> $A"), "bos").note
        assert note is not None
        assert "'<s>'" in note
        assert "'</s>'" in note

    def test_it_can_be_set(self):
        tokenizer = byte_level("[gMASK]", "<sop>", template="</s> $A")
        ids = {setting: opening_tokens(tokenizer, setting).ids for setting in ("none", "bos", "eos", "[gMASK]<sop>")}
        named = dict(zip(("[gMASK]", "<sop>"), tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"]), strict=True))
        assert ids == {"none": (), "bos": (0,), "eos": (1,), "[gMASK]<sop>": tuple(named.values())}
        assert opening_tokens(tokenizer, "Once ").ids == own_ids(tokenizer, "Once ")

    def test_a_missing_token_is_named(self):
        with pytest.raises(ConfigError, match="opening 'bos' requests a token that this tokenizer does not define"):
            opening_tokens(byte_level(bos_token=None), "bos")


class TestSpecialTokensInTexts:
    @pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
    @pytest.mark.parametrize("text", ["a <s>b</s> c", "</s>", "<s><s>", "a<s", "x </s> y <s> z"])
    def test_names_of_special_tokens_are_encoded_as_plain_text(self, base, maker, text):
        tokenizer = maker()
        ids = texts_of(tokenizer, base).encode_plain(text)
        names = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        assert ids
        assert not names & set(ids)
        # Letter by letter, every one of them is there.
        spelled = "".join(tokenizer.convert_ids_to_tokens(list(ids))).replace("Ġ", SPACE).replace(" ", SPACE)
        assert spelled.removeprefix(SPACE) == text.replace(" ", SPACE)

    def test_texts_without_such_names_are_encoded_as_usual(self, base):
        for maker in MAKERS.values():
            tokenizer = maker()
            for text in ("some text", "Text: a < b\nTone:", " two  spaces ", ""):
                assert texts_of(tokenizer, base).encode_plain(text) == own_ids(tokenizer, text)

    def test_the_name_of_the_unknown_token_is_a_text_too(self, base):
        tokenizer = sentencepiece(True)
        assert tokenizer.unk_token_id in own_ids(tokenizer, "a <unk> b")
        assert tokenizer.unk_token_id not in texts_of(tokenizer, base).encode_plain("a <unk> b")

    def test_tokens_that_were_added_without_being_special_stay(self, base):
        tokenizer = byte_level()
        tokenizer.add_tokens(["<table>"])
        added = tokenizer.convert_tokens_to_ids("<table>")
        ids = texts_of(tokenizer, base).encode_plain("a <table> of </s>")
        assert ids.count(added) == 1
        assert not {0, 1} & set(ids)

    def test_an_examples_text_is_text_and_the_prompts_own_words_may_hold_special_tokens(self, base):
        tokenizer = byte_level("<|user|>", "<|model|>")
        user, model = tokenizer.convert_tokens_to_ids(["<|user|>", "<|model|>"])
        task = sentiment(template=Template("<|user|>Review: {text}<|model|>Tone:", "</s>"))
        # Two rows more, for the two tokens.
        lm = dataclasses.replace(under(base, tokenizer), model=tiny_model("llama", vocab_size=VOCABULARY + 2))
        encoder = Encoder(lm, task)
        prompt = encoder.query(Example({"text": "so <|model|> so"}, 0, 0)).prompt
        assert prompt[0] == user
        assert prompt.count(model) == 1
        assert prompt[1 : prompt.index(model)] == tuple(
            tokenizer("Review: so <|model|> so", split_special_tokens=True)["input_ids"]
        )
        assert encoder.separator == (1,)
        notes = " ".join(encoder.notes())
        assert "own words contain special tokens ('<|user|>', '<|model|>')" in notes
        assert "'<|model|>' in 1 of 1 texts" in notes

    def test_names_of_special_tokens_are_noted_with_the_number_of_texts(self, base):
        encoder = Encoder(under(base, unigram()), sentiment(template=Template(PROMPT, "\n")))
        for number, text in enumerate(["a <s> b", "a <s> b", "c </s> d <s>", "plain"]):
            encoder.query(Example({"text": text}, 0, number))
        assert any("'<s>' in 2, '</s>' in 1 of 3 texts" in note for note in encoder.notes())


class TestUnknownTokens:
    def test_a_label_word_that_becomes_unknown_is_refused(self, base):
        for words in (("positive", "ж"), ("positive", "goжd")):
            with pytest.raises(LabelWordError, match=f"label word {words[1]!r} becomes the unknown token.*'ж'"):
                Encoder(under(base, unigram()), sentiment(words))

    def test_unknown_characters_of_texts_are_counted(self, base):
        tokenizer = unigram()
        encoder = Encoder(under(base, tokenizer), sentiment(template=Template(PROMPT, ".")))
        prompts = [
            encoder.query(Example({"text": text}, 0, number)).prompt
            for number, text in enumerate(["a ж b ж c", "plain", "ю"])
        ]
        n = sum(map(len, prompts))
        unknown = sum(prompt.count(tokenizer.unk_token_id) for prompt in prompts)
        assert unknown == 3
        note = next(note for note in encoder.notes() if "unknown" in note)
        assert f"3 of {n} tokens" in note
        assert "2 of 3 texts" in note
        assert "'ж', 'ю'" in note


class TestSeparators:
    @pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
    @pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ". ", " | "])
    def test_demonstrations_spell_the_text_in_one_piece(self, base, maker, separator):
        tokenizer = maker()
        task = sentiment(("good", "bad"), template=Template(PROMPT, separator))
        encoder = Encoder(under(base, tokenizer), task)
        chosen = draw_demonstrations(task, 4, 1)
        encoded = encoder.demonstrations(chosen)
        query = encoder.query(task.split("test")[0])
        texts = [
            task.template.render(example) + task.answers(example)[label] + separator
            for example, label in zip(chosen.examples, chosen.labels, strict=True)
        ]
        ids = (*encoded.prefix[len(encoder.opening) :], *query.prompt)
        actual = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
        query_text = task.template.render(task.split("test")[0])
        together = own_ids(tokenizer, "".join(texts) + query_text)
        expected = "".join(tokenizer.convert_ids_to_tokens(list(together)))
        if "adds a space at the start of a text" in " ".join(encoder.notes()):
            # The prompts' own space, which is written before each of them; noted.
            assert tokenizer.convert_ids_to_tokens(encoded.prefix[1]) == SPACE
            expected = expected.replace("Text:", f"{SPACE}Text:").removeprefix(SPACE)
        assert actual == expected

    def test_a_line_break_stays_where_it_can_be_written_and_no_space_comes_before_it(self, base):
        for first in (True, False):
            tokenizer = sentencepiece(first)
            encoder = Encoder(under(base, tokenizer), sentiment(template=Template(PROMPT, "\n\n")))
            assert tokenizer.convert_ids_to_tokens(list(encoder.separator)) == ["<0x0A>", "<0x0A>"]
            # Alone it would get the space that begins a text.
            assert tokenizer.convert_ids_to_tokens(list(own_ids(tokenizer, "\n\n")))[0] == SPACE

    def test_a_lost_line_break_is_noted(self, base):
        encoder = Encoder(under(base, unigram()), sentiment(template=Template(PROMPT, "\n\n")))
        assert any(
            "cannot encode a line break" in note and r"separator '\n\n'" in note and "the prompt" in note
            for note in encoder.notes()
        )
        assert not any("line break" in note for note in Encoder(under(base, sentencepiece(True)), sentiment()).notes())

    def test_answers_have_one_space_in_front_of_them(self, base):
        for maker in (lambda: sentencepiece(True), lambda: sentencepiece(False), unigram):
            tokenizer = maker()
            for prompt in (PROMPT, "Text: {text}", "{text} So"):
                query = Encoder(
                    under(base, tokenizer), sentiment(("good", "bad"), template=Template(prompt, "."))
                ).query(Example({"text": "fine"}, 0, 0))
                assert ["".join(tokenizer.convert_ids_to_tokens(list(answer))) for answer in query.answers] == [
                    f"{SPACE}good",
                    f"{SPACE}bad",
                ]

    def test_a_separator_may_hold_special_tokens(self, base):
        encoder = Encoder(under(base, byte_level()), sentiment(template=Template(PROMPT, "</s>\n")))
        assert encoder.separator == (1, *own_ids(byte_level(), "\n"))

    def test_a_closing_token_is_never_appended(self, base):
        encoder = Encoder(under(base, byte_level(template="<s> $A </s>")), sentiment(template=Template(PROMPT, ".")))
        encoded = encoder.demonstrations(draw_demonstrations(sentiment(template=Template(PROMPT, ".")), 2, 0))
        assert encoded.prefix.count(0) == 1
        assert 1 not in encoded.prefix
        assert 1 not in encoder.query(Example({"text": "a"}, 0, 0)).prompt


class TestRows:
    def test_a_token_without_a_row_is_named_with_its_id_and_the_number_of_rows(self, base):
        tokenizer = byte_level()
        tokenizer.add_tokens(["<sep>"])
        # One more than the model has.
        index = tokenizer.convert_tokens_to_ids("<sep>")
        assert index == VOCABULARY
        lm = under(base, tokenizer)
        encoder = Encoder(lm, sentiment())
        words = rf"row 5 .*'<sep>'.*token {index}.*embedding has {VOCABULARY} rows"
        with pytest.raises(ModelError, match=words):
            encoder.query(Example({"text": "a <sep> b"}, 0, 5))
        with pytest.raises(ModelError, match=r"line 3 of plain\.txt contains '<sep>'"):
            encoder.encode("<sep>", "line 3 of plain.txt")
        with pytest.raises(ModelError, match="the answer ' <sep>' contains '<sep>'"):
            Encoder(lm, sentiment(("good", "<sep>")))
        with pytest.raises(ModelError, match="the separator contains '<sep>'"):
            Encoder(lm, sentiment(template=Template(PROMPT, "<sep>")))
        with pytest.raises(ModelError, match="the opening contains '<sep>'"):
            Encoder(lm, sentiment(), "<sep>")
        assert encoder.tokens.without_rows == ("<sep>",)

    def test_all_splits_are_checked_only_if_the_tokenizer_has_tokens_without_rows(self, base):
        examples = tuple(Example({"text": f"text {i}"}, i % 2, i) for i in range(4))
        odd = (*examples, Example({"text": "a <sep>"}, 0, 4))
        task = sentiment()
        task = dataclasses.replace(task, splits={**task.splits, "train": odd})
        tokenizer = byte_level()
        Encoder(under(base, tokenizer), task).check_all()
        tokenizer.add_tokens(["<sep>"])
        with pytest.raises(ModelError, match="row 4 of task"):
            Encoder(under(base, tokenizer), task).check_all()
