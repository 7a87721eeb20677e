import dataclasses
import warnings

import pytest
import tokenizers
import transformers

from dualform.errors import ContextError, LabelWordError, TaskError
from dualform.models.reading.encoding import Encoder
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.task import Example, Template
from tests.models.reference import BY_NAME, wrapped
from tests.models.sentiment import TEXTS, sentiment, some_demonstrations
from tests.tiny import BOS_ID, EOS_ID, tiny_tokenizer


@pytest.fixture
def lm():
    return wrapped(BY_NAME["llama"])


def with_tokenizer(lm, change=lambda backend: None, **settings):
    """The model under another tokenizer."""
    backend = tiny_tokenizer().backend_tokenizer
    change(backend)
    special = {"bos_token": "<s>", "eos_token": "</s>", **settings}
    return dataclasses.replace(lm, tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special))


def ids(lm, text):
    return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


class TestDemonstrations:
    @pytest.mark.parametrize("separator", [None, "\n\n", ""])
    def test_the_prefix_is_the_text_that_a_reader_would_write(self, lm, separator):
        task = sentiment(template=Template("Review: {text} Sentiment:", separator))
        chosen = some_demonstrations(task)
        encoded = Encoder(lm, task).demonstrations(chosen)
        words = task.label_words or ()
        between = "</s>" if separator is None else separator
        expected = "<s>" + "".join(
            f"Review: {example.fields['text']} Sentiment: {words[label]}{between}"
            for example, label in zip(chosen.examples, chosen.labels, strict=True)
        )
        assert lm.tokenizer.decode(encoded.prefix) == expected

    def test_content_is_the_sequences_without_the_opening(self, lm):
        task = sentiment()
        encoder = Encoder(lm, task)
        encoded = encoder.demonstrations(some_demonstrations(task))
        content = tuple(encoded.prefix[position] for position in encoded.content)
        assert content == tuple(token for sequence in encoded.sequences for token in sequence[len(encoder.opening) :])
        rest = [token for position, token in enumerate(encoded.prefix) if position not in encoded.content]
        assert rest == [BOS_ID] + [EOS_ID] * 6

    def test_every_content_token_knows_its_demonstration(self, lm):
        task = sentiment()
        encoder = Encoder(lm, task)
        encoded = encoder.demonstrations(some_demonstrations(task))
        for number, sequence in enumerate(encoded.sequences):
            own = [
                encoded.prefix[position]
                for position, owner in zip(encoded.content, encoded.demonstration_of, strict=True)
                if owner == number
            ]
            assert tuple(own) == sequence[1:]
        assert sorted(encoded.demonstration_of) == list(encoded.demonstration_of)

    def test_a_sequence_is_the_opening_the_prompt_and_the_label_shown(self, lm):
        task = sentiment(("positive", "lukewarm"))
        chosen = some_demonstrations(task)
        encoded = Encoder(lm, task).demonstrations(chosen)
        words = task.label_words or ()
        for example, label, sequence, n_answer in zip(
            chosen.examples, chosen.labels, encoded.sequences, encoded.n_answer_tokens, strict=True
        ):
            answer = ids(lm, f" {words[label]}")
            assert n_answer == len(answer)
            assert sequence == (BOS_ID, *ids(lm, f"Review: {example.fields['text']} Sentiment:"), *answer)
        assert len(set(encoded.n_answer_tokens)) == 2

    def test_the_label_shown_is_encoded_not_the_true_one(self, lm):
        task = sentiment()
        chosen = some_demonstrations(task)
        flipped = dataclasses.replace(chosen, labels=tuple(1 - label for label in chosen.labels))
        encoder = Encoder(lm, task)
        for first, second in zip(
            encoder.demonstrations(chosen).sequences, encoder.demonstrations(flipped).sequences, strict=True
        ):
            assert first[:-1] == second[:-1]
            assert first[-1] != second[-1]

    def test_no_demonstrations_leave_the_opening(self, lm):
        task = sentiment()
        encoded = Encoder(lm, task).demonstrations(some_demonstrations(task, 0))
        assert encoded.prefix == (BOS_ID,)
        assert encoded.content == encoded.demonstration_of == encoded.sequences == encoded.n_answer_tokens == ()

    def test_a_tokenizer_without_special_tokens_opens_with_nothing_and_needs_a_separator(self, lm):
        bare = with_tokenizer(lm, bos_token=None, eos_token=None)
        with pytest.raises(TaskError, match="no end-of-sequence token to separate demonstrations: give a --separator"):
            Encoder(bare, sentiment())
        task = sentiment(template=Template("Review: {text} Sentiment:", "\n"))
        encoder = Encoder(bare, task)
        encoded = encoder.demonstrations(some_demonstrations(task, 2))
        assert encoder.opening == ()
        assert encoded.prefix[0] == encoded.sequences[0][0]
        assert len(encoded.content) == sum(map(len, encoded.sequences))

    def test_choices_are_encoded_for_each_example(self, lm):
        task = sentiment(None)
        encoder = Encoder(lm, task)
        query = encoder.query(task.split("test")[0])
        assert query.answers == (ids(lm, " good"), ids(lm, " rather bad"))
        encoded = encoder.demonstrations(draw_demonstrations(task, 4, 0))
        assert set(encoded.n_answer_tokens) == {len(answer) for answer in query.answers}


class TestFiller:
    @pytest.mark.parametrize("separator", [None, "\n\n", " -- "])
    @pytest.mark.parametrize("length", [1, 2, 3, 30, 31])
    def test_filler_is_the_opening_and_repeated_separators(self, lm, separator, length):
        encoder = Encoder(lm, sentiment(template=Template("Review: {text} Sentiment:", separator)))
        again = (EOS_ID,) if separator is None else ids(lm, separator)
        filler = encoder.filler(length)
        assert len(filler) == length
        assert filler[0] == BOS_ID
        # A separator may be cut at the end, so that the length is exact.
        assert filler[1:] == (again * length)[: length - 1]

    def test_it_shares_no_content_with_demonstrations_of_the_same_length(self, lm):
        task = sentiment(template=Template("Review: {text} Sentiment:", "\n"))
        encoder = Encoder(lm, task)
        encoded = encoder.demonstrations(some_demonstrations(task))
        filler = encoder.filler(len(encoded.prefix))
        assert len(filler) == len(encoded.prefix)
        assert not {filler[position] for position in encoded.content} & set(ids(lm, "Review: positive Sentiment:"))

    def test_without_separators_filler_is_the_repeated_opening(self, lm):
        encoder = Encoder(lm, sentiment(template=Template("Review: {text} Sentiment:", "")))
        assert encoder.filler(5) == (BOS_ID,) * 5

    def test_without_separator_and_opening_filler_is_full_stops(self, lm):
        bare = with_tokenizer(lm, bos_token=None, eos_token=None)
        encoder = Encoder(bare, sentiment(template=Template("Review: {text} Sentiment:", "")))
        filler = encoder.filler(6)
        assert encoder.opening == ()
        assert len(filler) == 6
        assert set(lm.tokenizer.decode(filler)) <= {" ", "."}

    def test_a_prefix_of_nothing_but_the_opening_is_the_opening(self, lm):
        task = sentiment()
        encoder = Encoder(lm, task)
        assert encoder.filler(len(encoder.opening)) == encoder.opening


class TestQueries:
    def test_a_query_is_the_prompt_and_all_label_words(self, lm):
        query = Encoder(lm, sentiment(("positive", "lukewarm"))).query(sentiment().split("test")[0])
        assert query.prompt == ids(lm, "Review: a charming film Sentiment:")
        assert query.answers == (ids(lm, " positive"), ids(lm, " lukewarm"))
        assert [len(answer) for answer in query.answers] == [1, len(ids(lm, " lukewarm"))]

    def test_a_word_is_encoded_as_it_follows_the_prompt(self, lm):
        # This tokenizer takes the space before a word away at the start of a text, as SentencePiece's do.
        def strip(backend):
            backend.normalizer = tokenizers.normalizers.Strip(left=True, right=False)

        stripping = with_tokenizer(lm, strip)
        assert ids(stripping, " positive") != ids(lm, " positive")
        query = Encoder(stripping, sentiment()).query(sentiment().split("test")[0])
        assert query.answers == (ids(lm, " positive"), ids(lm, " negative"))

    def test_a_word_that_would_merge_with_the_prompt_is_encoded_alone(self, lm):
        # Behind "Sentiment" the answer would merge into the prompt's last token: prompt tokens must not change.
        task = sentiment(("s", "t"), template=Template("{text} Sentimen"))

        def merging(backend):
            backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
                [
                    tokenizers.pre_tokenizers.Split(tokenizers.Regex("Sentimen [st]"), "isolated"),
                    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
            backend.add_tokens(["Sentimen s"])

        query = Encoder(with_tokenizer(lm, merging), task).query(task.split("test")[0])
        assert query.answers[0] == ids(lm, " s")

    def test_an_empty_prompt_is_named(self, lm):
        def remove(backend):
            backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("^Review: gone Sentiment:$"), "")

        task = sentiment()
        encoder = Encoder(with_tokenizer(lm, remove), task)
        with pytest.raises(TaskError, match="row 7 of task sentiment becomes an empty prompt"):
            encoder.query(Example({"text": "gone"}, 0, 7))


class TestLabelWords:
    def test_two_words_of_the_same_tokens_are_refused(self, lm):
        def lower(backend):
            backend.normalizer = tokenizers.normalizers.Lowercase()

        with pytest.raises(LabelWordError, match=r"label words 'Good' and 'good' become the same tokens \[[\d, ]+\]"):
            Encoder(with_tokenizer(lm, lower), sentiment(("Good", "good")))

    def test_a_word_that_becomes_no_token_is_refused(self, lm):
        def forget(backend):
            backend.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(" ø"), "")

        with pytest.raises(LabelWordError, match=r"answer ' ø' becomes no token with this tokenizer. Choose another"):
            Encoder(with_tokenizer(lm, forget), sentiment(("positive", "ø")))

    def test_two_words_with_the_same_first_token_get_a_warning_that_names_them(self, lm):
        first = ids(lm, " lukewarm")[0]
        assert ids(lm, " lukecold")[0] == first
        with pytest.warns(UserWarning, match=rf"'lukewarm' and 'lukecold' begin with the same token \({first}\)"):
            Encoder(lm, sentiment(("lukewarm", "lukecold")))

    def test_words_that_begin_differently_get_none(self, lm):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            Encoder(lm, sentiment())
        assert caught == []


class TestTruncateToContext:
    @pytest.fixture
    def parts(self, lm):
        task = sentiment()
        encoder = Encoder(lm, task)
        return encoder, some_demonstrations(task, 10), [encoder.query(example) for example in task.split("test")]

    def test_no_limit_or_room_enough_keeps_all(self, parts):
        encoder, chosen, queries = parts
        assert encoder.truncate_to_context(chosen, queries, None) is chosen
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert encoder.truncate_to_context(chosen, queries, 10_000).k_effective == 10

    def test_the_first_that_fit_are_kept_and_a_warning_says_how_many(self, parts):
        encoder, chosen, queries = parts
        longest = max(len(query.prompt) + max(map(len, query.answers)) for query in queries)
        lengths = [len(encoder.demonstrations(chosen.truncated(k)).prefix) for k in range(11)]
        for k in range(1, 10):
            context = lengths[k] + longest
            room = context - 1 - longest
            words = (
                rf"10 demonstrations take {lengths[10] - 1} tokens, but a context of {context} leaves room for {room} "
                rf"next to the longest query: the prompt has the first {k} \(seed 3\)"
            )
            for spare in (0, lengths[k + 1] - lengths[k] - 1):
                with pytest.warns(UserWarning, match=words if spare == 0 else f"the prompt has the first {k} "):
                    fitted = encoder.truncate_to_context(chosen, queries, context + spare)
                assert fitted.k_effective == k
                assert fitted.k_requested == 10
                assert fitted.rows == chosen.rows[:k]
                encoded = encoder.demonstrations(fitted)
                assert all(
                    len(encoded.prefix) + len(query.prompt) + max(map(len, query.answers)) <= context + spare
                    for query in queries
                )

    def test_exactly_enough_room_keeps_all_without_a_warning(self, parts):
        encoder, chosen, queries = parts
        longest = max(len(query.prompt) + max(map(len, query.answers)) for query in queries)
        context = len(encoder.demonstrations(chosen).prefix) + longest
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert encoder.truncate_to_context(chosen, queries, context).k_effective == 10

    def test_a_query_longer_than_the_context_is_an_error_that_says_by_how_much(self, parts):
        encoder, chosen, queries = parts
        longest = max(len(query.prompt) + max(map(len, query.answers)) for query in queries)
        with pytest.raises(ContextError, match=f"a query takes {longest} tokens, but the context holds {longest}"):
            encoder.truncate_to_context(chosen, queries, longest)
        # One more token, for the opening, and it fits without any demonstration.
        assert encoder.truncate_to_context(chosen.truncated(0), queries, longest + 1).k_effective == 0

    def test_a_first_demonstration_that_does_not_fit_is_an_error(self, parts):
        encoder, chosen, queries = parts
        longest = max(len(query.prompt) + max(map(len, query.answers)) for query in queries)
        first = len(encoder.demonstrations(chosen.truncated(1)).prefix) - 1
        context = longest + first
        words = (
            rf"the first demonstration takes {first} tokens, but a context of {context} leaves room for {first - 1} "
            r"next to the longest query \(seed 3\)\. Raise --context, .* \(-k 0\)\."
        )
        with pytest.raises(ContextError, match=words):
            encoder.truncate_to_context(chosen, queries, context)
        with pytest.warns(UserWarning, match="the prompt has the first 1 "):
            assert encoder.truncate_to_context(chosen, queries, context + 1).k_effective == 1

    def test_texts_differ_in_length_as_the_tests_above_need(self, lm):
        assert len({len(ids(lm, text)) for text in TEXTS}) > 4
