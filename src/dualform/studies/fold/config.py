"""Settings of a fold that is written to disk, checked before a model loads."""

from typing import Literal

from pydantic import Field

from dualform.configuration import MOST_TEXTS, checked
from dualform.errors import ConfigError
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.settings import given_settings

Form = Literal["checkpoint", "lora"]


class FoldConfig(ComparisonConfig):
    """What to fold into what; the first seed's demonstrations are folded."""

    form: Form = "checkpoint"
    """A checkpoint of its own, or an adapter for peft beside the base."""
    rank: int = Field(default=16, ge=1, le=1 << 16)
    """Of the adapter: each layer's change is cut to so many directions."""
    perplexity: str | None = None
    """File with plain text, a passage a line, on which perplexity is measured before and after."""
    perplexity_texts: int = Field(default=64, ge=1, le=MOST_TEXTS)
    """Most passages of it, the longest ones."""
    verify: bool = False
    """Load what was written in a fresh process and compare its log-probabilities with those in memory."""


def fold_config(model: str, task: str, **settings: object) -> FoldConfig:
    """A checked configuration.

    Args:
        model: See `ComparisonConfig.model`.
        task: See `StudyConfig.task`.
        settings: Fields of `FoldConfig`; None means not given, 0 for a limit none.

    Raises:
        ConfigError: All that is wrong, in one message.
    """
    given = given_settings(settings)
    if given.get("k") == 0:
        raise ConfigError("k 0 leaves nothing to fold: ask for at least one demonstration")
    fixed = {"learners": ("zsl", "icl", "fold"), "controls": (), "explore": 0, "model": model, "task": task}
    return checked(FoldConfig, {"seeds": (1,), **given, **fixed})
