import pytest

from dualform.tasks.hub import HUB_PLACES
from dualform.tasks.packaged import PACKAGED_SETS
from dualform.tasks.prompts import WORDINGS
from dualform.tasks.task import Example


def test_every_task_with_a_known_place_has_a_wording_and_the_reverse():
    assert set(WORDINGS) == set(HUB_PLACES) | set(PACKAGED_SETS)


@pytest.mark.parametrize("wording", WORDINGS.values(), ids=WORDINGS)
def test_every_label_has_its_own_word(wording):
    if wording.label_words is None:
        assert wording.label_names is None
    else:
        assert len(set(wording.label_words)) == len(wording.label_words) == len(wording.label_names)


PAPER = {
    "sst2": ("Sentence: x Label:", ("Negative", "Positive"), "validation"),
    "sst5": ("Sentence: x Label:", ("terrible", "bad", "neutral", "good", "great"), "validation"),
    "mr": ("Review: x Sentiment:", ("Negative", "Positive"), "validation"),
    "subj": ("Input: x Type:", ("objective", "subjective"), "test"),
    "agnews": (
        "Classify the news articles into the categories of World, Sports, Business, and Technology. Article: x Answer:",
        ("World", "Sports", "Business", "Technology"),
        "test",
    ),
    "cb": ("x Question: y. True, False, or Neither? Answer:", ("True", "False", "Neither"), "validation"),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tasks_read_as_printed(name):
    wording = WORDINGS[name]
    example = Example({"text": "x", "premise": "x", "hypothesis": "y"}, 0, 0)
    assert (wording.template.render(example), wording.label_words, wording.paper_split) == PAPER[name]
    assert wording.template.separator is None


@pytest.mark.parametrize("name", [*PACKAGED_SETS, "piqa"])
def test_the_other_tasks_separate_by_an_empty_line(name):
    assert WORDINGS[name].template.separator == "\n\n"
    assert WORDINGS[name].paper_split is None
