"""The prompts and label words of the tasks that dualform knows by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualform.tasks.task import Template


@dataclass(frozen=True)
class Wording:
    """Prompt template and label words of a known task."""

    template: Template
    label_names: tuple[str, ...] | None
    """Names of the labels in the data sets, in index order; None for multiple choice."""
    label_words: tuple[str, ...] | None
    """The label words, in the same order; None for multiple choice."""
    paper_split: str | None = None
    """Split on which the paper's released code evaluates."""
    paper_files: Mapping[str, str] = field(default_factory=dict)
    """Files with the rows that the paper's released code reads, by split, as names under `extra_files` in
    `dataset.json`. Empty if those are the splits' usual rows."""


_SENTIMENT = ("negative", "positive")


def _packaged(noun: str) -> Wording:
    template = Template(f"{noun}: {{text}}\nSentiment:", separator="\n\n")
    return Wording(template, label_names=_SENTIMENT, label_words=_SENTIMENT)


WORDINGS: Mapping[str, Wording] = {
    "sst2": Wording(
        Template("Sentence: {text} Label:"),
        _SENTIMENT,
        ("Negative", "Positive"),
        "validation",
        # The GLUE version, whose train split also contains labelled phrases.
        {"train": "train_phrases", "validation": "validation_glue"},
    ),
    "sst5": Wording(
        Template("Sentence: {text} Label:"),
        ("very negative", "negative", "neutral", "positive", "very positive"),
        ("terrible", "bad", "neutral", "good", "great"),
        "validation",
    ),
    "mr": Wording(Template("Review: {text} Sentiment:"), _SENTIMENT, ("Negative", "Positive"), "validation"),
    "subj": Wording(Template("Input: {text} Type:"), ("objective", "subjective"), ("objective", "subjective"), "test"),
    "agnews": Wording(
        Template(
            "Classify the news articles into the categories of World, Sports, Business, and Technology. "
            "Article: {text} Answer:"
        ),
        ("World", "Sports", "Business", "Sci/Tech"),
        ("World", "Sports", "Business", "Technology"),
        "test",
    ),
    "cb": Wording(
        Template("{premise} Question: {hypothesis}. True, False, or Neither? Answer:"),
        ("entailment", "contradiction", "neutral"),
        ("True", "False", "Neither"),
        "validation",
    ),
    "imdb": Wording(Template("Review: {text} Sentiment:"), _SENTIMENT, _SENTIMENT),
    "piqa": Wording(Template("Question: {text}\nAnswer:", separator="\n\n"), None, None),
    "reviews": _packaged("Review"),
    "products": _packaged("Review"),
    "tweets": _packaged("Tweet"),
    "editorials": _packaged("Text"),
}
"""Wording of each known task, by name.

Source:
    sst2, sst5, mr, subj, agnews, cb: the templates and evaluated splits of arXiv:2212.10559v3 and its released
    code, which puts the end-of-sequence token (separator None) between demonstrations. The others were written for
    dualform.
"""
