"""A small task with texts that the tiny tokenizer knows."""

from typing import Any

from dualform.tasks.demonstrations import Demonstrations, draw_demonstrations
from dualform.tasks.task import Example, Task, Template

TEXTS = (
    "a warm and funny film",
    "a cold and tedious film",
    "the acting is fine and the story is good",
    "the acting is poor",
    "everything works here",
    "nothing here works, neither the plot nor the players",
    "a lively and charming story, told with wit and grace",
    "a dull story",
    "one of the best films of the year",
    "one of the worst films of the year, by far",
)


def sentiment(label_words: tuple[str, ...] | None = ("positive", "negative"), **changes: Any) -> Task:
    """Ten train rows, labels in turn; `changes` are fields of `Task`."""
    choices = ("good", "rather bad") if label_words is None else None

    def examples(texts: tuple[str, ...]) -> tuple[Example, ...]:
        return tuple(Example({"text": text}, row % 2, row, choices) for row, text in enumerate(texts))

    settings: dict[str, Any] = {
        "name": "sentiment",
        "source": "a test",
        "splits": {
            "train": examples(TEXTS),
            "validation": examples(("a good film", "a bad film", "a fine plot", "a poor plot")),
            "test": examples(("a charming film", "a lifeless film", "wit and grace", "the story is bad", "alike")),
        },
        "template": Template("Review: {text} Sentiment:"),
        "label_words": label_words,
        "label_names": None,
        "selection_split": "validation",
        "report_split": "test",
    }
    return Task(**(settings | changes))


def some_demonstrations(task: Task, k: int = 6, seed: int = 3) -> Demonstrations:
    """The first k of a shuffle."""
    return draw_demonstrations(task, k, seed)
