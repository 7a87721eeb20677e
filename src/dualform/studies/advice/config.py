"""Settings of a study that advises which learner to use with how many labels."""

from typing import Annotated, Any, ClassVar, Self

from dualform.configuration import checked
from dualform.option import PROTOCOL, Option
from dualform.seeds import parse_whole_numbers
from dualform.studies.learner_config import MOST_SHOWN, LearnersConfig
from dualform.studies.settings import given_settings

SMALLEST, LARGEST = 4, 128
"""The fewest and the most labels of the default budgets, each twice the one before."""

ADVISED = ("zsl", "icl", "icl_batch", "lora", "embedding", "tfidf")
"""The learners that are compared by default."""


def _read_budgets(text: str) -> tuple[int, ...]:
    return parse_whole_numbers(text, "labels")


class AdviceConfig(LearnersConfig):
    """Budgets of labels, and the learners that are given each of them."""

    without_options: ClassVar[frozenset[str]] = frozenset(
        {"labels", "balanced", "label_rule", "probe", "selection_limit", "quantize"}
    )

    learners: Annotated[tuple[str, ...], Option(default=",".join(ADVISED))] = ADVISED
    """Of those that `dualform learners` lists. Another package adds a learner by an entry point in
    `dualform.learners`."""
    budgets: Annotated[
        tuple[int, ...] | None,
        Option(PROTOCOL, ("--labels",), default="4,8,16,... up to 128 or the train split", read=_read_budgets),
    ] = None
    """Numbers of labels, such as 8,32,128. Each learner gets each of them, for its demonstrations, its training and
    the choice of its settings together."""
    k: Annotated[int, Option(names=("-k", "--k"))] = MOST_SHOWN
    """Most demonstrations in the prompt; a smaller budget shows all of its labels."""
    balanced: bool = False
    """Always false: balanced demonstrations would need labels outside the budget."""

    def with_budget(self, n: int) -> "AdviceConfig":
        """The settings for one budget of `n` labels."""
        return self.model_copy(update={"labels": n, "k": min(self.k, n)})

    def budgets_of(self, n_train: int) -> tuple[int, ...]:
        """The budgets that a train split of `n_train` rows allows, ascending."""
        if self.budgets is not None:
            return tuple(sorted(n for n in self.budgets if n <= n_train))
        doubled = [SMALLEST * 2**step for step in range(32)]
        return tuple(n for n in doubled if n <= min(LARGEST, n_train)) or (n_train,)

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """A validated configuration; see `StudyConfig.from_settings`."""
        return checked(cls, given_settings(settings))

    def _problems(self) -> list[str]:
        problems = super()._problems()
        budgets = self.budgets
        if budgets is not None and (not budgets or len(set(budgets)) != len(budgets) or min(budgets) < 1):
            problems.append(f"labels {list(budgets)} must be different numbers from 1 on, at least one")
        if self.balanced:
            problems.append(
                "balanced demonstrations need the labels of the whole train split, which no budget counts: draw them "
                "with balanced false"
            )
        if len(self.learners) < 2:
            problems.append(f"learners {list(self.learners)}: advice needs at least two to compare")
        return problems


def advice_config(model: str, task: str, **settings: Any) -> AdviceConfig:
    """A validated configuration of advice.

    Args:
        model: As in `AdviceConfig`.
        task: As in `AdviceConfig`.
        settings: Other fields of `AdviceConfig`; None means not given, and 0 for a limit means no limit.

    Raises:
        ConfigError: Settings are invalid; the message lists all problems.
    """
    return AdviceConfig.from_settings(model=model, task=task, **settings)
