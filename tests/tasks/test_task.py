import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualform.errors import LabelWordError, TaskError
from dualform.tasks.task import Example, Template


def test_a_prompt_is_rendered_from_named_fields_and_literal_braces():
    template = Template("{premise} {{Question}}: {hypothesis}. True?")
    example = Example({"premise": "It rains.", "hypothesis": "It is wet", "idx": "7"}, 0, 0)
    assert template.render(example) == "It rains. {Question}: It is wet. True?"
    assert template.fields == ("premise", "hypothesis")


@given(st.text())
def test_a_text_reaches_the_prompt_unchanged_whatever_it_holds(text):
    assert Template("Text: {text}\nLabel:").render(Example({"text": text}, 0, 0)) == f"Text: {text}\nLabel:"


@pytest.mark.parametrize(
    ("prompt", "tail"),
    [
        ("Review: {text}\nSentiment:", "\nSentiment:"),
        ("{text}", ""),
        ("{a} and {b} {{ok}} so:", " {ok} so:"),
    ],
)
def test_the_tail_is_the_literal_text_after_the_last_field(prompt, tail):
    assert Template(prompt).tail == tail


def test_an_unknown_field_is_named_with_the_fields_there_are():
    with pytest.raises(TaskError, match=r"\{review\}.*row 3 .*fields are: text, title"):
        Template("{review}:").render(Example({"text": "a", "title": "b"}, 0, 3))


@pytest.mark.parametrize("field", ["{text.upper}", "{text[0]}", "{text!r}", "{text:>9}", "{}", "{text:{text}}"])
def test_only_plain_fields_are_allowed(field):
    with pytest.raises(TaskError, match="plain names") as caught:
        Template(f"Say {field} now")
    assert field.split("{text}")[0].rstrip("}") in str(caught.value)


@pytest.mark.parametrize("prompt", ["{text", "text}"])
def test_unbalanced_braces_are_reported(prompt):
    with pytest.raises(TaskError, match="cannot be parsed"):
        Template(prompt)


def test_a_prompt_without_a_field_shows_nothing():
    with pytest.raises(TaskError, match="'Label:' contains no field"):
        Template("Label:")


@pytest.mark.parametrize("end", [" ", "\n"])
def test_a_prompt_ending_in_white_space_is_refused(end):
    with pytest.raises(TaskError, match="ends in white space"):
        Template("{text} Label:" + end)


def test_answers_are_label_words_with_a_leading_space(make_task):
    task = make_task([0, 1], words=("Negative", "Positive"))
    assert task.answers(task.split("test")[0]) == (" Negative", " Positive")
    assert not task.is_multiple_choice
    assert task.n_labels == 2


def test_answers_of_multiple_choice_are_the_examples_own_choices_trimmed(make_task):
    task = make_task([0, 1], words=None, choices=("with glue ", " with a pin", "not at all"))
    assert task.answers(task.demonstration_pool[0]) == (" with glue", " with a pin", " not at all")
    assert task.is_multiple_choice
    assert task.n_labels == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bad", ""), "label word '' of label 1"),
        (("  ", "good"), "label word '  ' of label 0"),
        (("bad", " good"), "' good' of label 1 .* white space"),
        (("same", "other", "same"), "'same' .* stands for labels 0 and 2"),
        (("only",), r"\['only'\].*Give at least two"),
    ],
)
def test_label_words_must_be_able_to_stand_for_their_labels(make_task, words, message):
    with pytest.raises(LabelWordError, match=message):
        make_task([0, 0], words=words)


def test_names_and_words_must_be_as_many(make_task):
    with pytest.raises(LabelWordError, match=r"2 label words \(bad, good\) for 3 labels \(a, b, c\)"):
        make_task([0, 1], label_names=("a", "b", "c"))


def test_a_label_outside_the_map_is_named_with_split_and_row(make_task):
    with pytest.raises(TaskError, match=r"split 'train', row 2: label 5 is out of range; there are 2 labels \(bad,"):
        make_task([0, 1, 5])
    with pytest.raises(TaskError, match="row 0: label -1"):
        make_task([-1])


def test_a_label_outside_the_choices_is_named(make_task):
    with pytest.raises(TaskError, match="row 1: label 2 is out of range; there are 2 choices"):
        make_task([0, 2], words=None, choices=("a", "b"))


def test_without_label_words_every_example_needs_choices(make_task):
    with pytest.raises(TaskError, match="row 0: no choices"):
        make_task([0], words=None)
    with pytest.raises(LabelWordError, match=r"a choice is empty \(\['a', ' '\]\)"):
        make_task([0], words=None, choices=("a", " "))


def test_an_empty_split_is_refused(make_task):
    with pytest.raises(TaskError, match="split 'train' of task 'toy' is empty"):
        make_task([])


@pytest.mark.parametrize("role", ["selection_split", "report_split", "paper_split"])
def test_a_role_without_its_split_is_refused(make_task, role):
    with pytest.raises(TaskError, match=r"'dev'\. Its splits are: train, validation, test"):
        make_task([0, 1], **{role: "dev"})


def test_a_template_that_does_not_fit_the_examples_is_refused(make_task):
    with pytest.raises(TaskError, match=r"\{review\}.*fields are: text"):
        make_task([0], template=Template("{review}:"))


def test_an_unknown_split_is_named_with_those_there_are(make_task):
    with pytest.raises(TaskError, match=r"no split 'dev'\. Its splits are: train, validation, test"):
        make_task([0]).split("dev")


def test_a_task_travels_to_another_process_unchanged(make_task):
    task = make_task([0, 1])
    assert task.template.tail == "\nLabel:"
    assert pickle.loads(pickle.dumps(task)) == task
    assert replace(task, notes=("n",)).notes == ("n",)
