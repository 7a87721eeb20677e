"""Which labelled examples a learner is shown, in which order and with which labels: one object for all learners."""

import math
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from dualform.errors import ConfigError, TaskError
from dualform.tasks.task import Example, Task

_ATTEMPTS = 100

LabelRule = Literal["true", "shuffled", "random", "flipped"]


@dataclass(frozen=True)
class Demonstrations:
    """An ordered selection of examples with the labels that are shown for them.

    Raises:
        ConfigError: The number of labels is not that of the examples.
    """

    task: str
    """Name of the task that they come from."""
    examples: tuple[Example, ...] = field(repr=False)
    labels: tuple[int, ...]
    """The labels shown, after the label rule; `examples` keep the true ones."""
    seed: int
    balanced: bool
    label_rule: LabelRule
    k_requested: int

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.labels):
            raise ConfigError(
                f"{len(self.examples)} demonstrations came with {len(self.labels)} labels; give each one."
            )

    @property
    def k_effective(self) -> int:
        """How many there are, which is fewer than `k_requested` once truncated."""
        return len(self.examples)

    @property
    def rows(self) -> tuple[int, ...]:
        """Row numbers in the train split's file, in order."""
        return tuple(example.row for example in self.examples)

    def reordered(self, number: int) -> "Demonstrations":
        """The same demonstrations in another order; number 0 is the order drawn.

        Raises:
            ConfigError: `number` is negative.
        """
        _require_non_negative("order", number)
        if number == 0:
            return self
        places = list(range(len(self.examples)))
        random.Random(f"{self.seed}/order/{number}").shuffle(places)
        return replace(
            self,
            examples=tuple(self.examples[place] for place in places),
            labels=tuple(self.labels[place] for place in places),
        )

    @property
    def n_orders(self) -> int:
        """How many different orders there are: k! for k different demonstrations, fewer where some are equal."""
        orders = math.factorial(self.k_effective)
        for times in Counter(self._contents).values():
            orders //= math.factorial(times)
        return orders

    def in_orders(self, n: int) -> "tuple[Demonstrations, ...]":
        """The same demonstrations in up to `n` different orders, the one drawn first; fewer where there are no more."""
        found: dict[tuple[object, ...], Demonstrations] = {}
        # Exchanging two equal demonstrations gives no other order, so k! may never be reached.
        most = min(n, self.n_orders)
        number = 0
        while len(found) < most:
            again = self.reordered(number)
            found.setdefault(again._contents, again)
            number += 1
        return tuple(found.values())

    @property
    def _contents(self) -> tuple[object, ...]:
        """What each demonstration shows, in order: two with equal texts and labels are the same to a model."""
        return tuple(
            (tuple(sorted(example.fields.items())), example.choices, label)
            for example, label in zip(self.examples, self.labels, strict=True)
        )

    def labelled_otherwise(self, task: Task, rule: LabelRule) -> "Demonstrations | None":
        """The same demonstrations with the labels that they show dealt anew, until one at least is another.

        Args:
            task: Theirs.
            rule: `shuffled` or `random`.

        Returns:
            Them, or None where no other labels came: all show the same, or there is but one.
        """
        for attempt in range(_ATTEMPTS):
            labels = _labels_shown(task, self.examples, rule, self.seed, self.labels, attempt)
            if labels != self.labels:
                return replace(self, labels=labels, label_rule=rule)
        return None

    def relabelled(self, task: Task, rule: LabelRule) -> "Demonstrations":
        """The same demonstrations in the same order, their labels shown by another rule.

        Raises:
            ConfigError: `rule` is unknown.
        """
        _require_rule(rule)
        return replace(self, labels=_labels_shown(task, self.examples, rule, self.seed), label_rule=rule)

    def truncated(self, k: int) -> "Demonstrations":
        """The first `k` of them (all, if there are no more).

        Raises:
            ConfigError: `k` is negative.
        """
        _require_non_negative("number of demonstrations", k)
        return replace(self, examples=self.examples[:k], labels=self.labels[:k])


def draw_demonstrations(
    task: Task, k: int, seed: int, *, balanced: bool = False, label_rule: LabelRule = "true"
) -> Demonstrations:
    """Draw demonstrations from the train split, without replacement.

    The same seed gives the same examples in the same order under every label rule, so that a control differs in
    its labels alone.

    Args:
        task: Where to draw from.
        k: How many; 0 gives an empty selection.
        seed: 0 or more.
        balanced: False is the paper's rule: shuffle train, take the first k, so smaller selections are prefixes of
            larger ones. True takes the classes in turn along the same shuffle, so their counts differ by at most
            one, then shuffles once more. For multiple choice a class is the index of the right choice.
        label_rule: `true`; `shuffled`, the labels drawn dealt out anew (their counts stay, and one may return to
            its own example); `random`, uniform over the labels, the true one included; `flipped`, each label
            the next one (two labels swapped), so that none is true. Under multiple choice labels are dealt among
            examples with equally many choices.

    Returns:
        The selection.

    Raises:
        ConfigError: `k` or `seed` is negative, or `label_rule` unknown.
        TaskError: Train has too few rows, or a class too few of them.

    Source:
        Drawing: arXiv:2212.10559v3, released code (not class-balanced, in shuffle order). Label controls: random
        labels as in arXiv:2202.12837, section 4.
    """
    _require_non_negative("number of demonstrations", k)
    # random.Random takes the seed's absolute value: -1 and 1 would be the same selection under two names.
    _require_non_negative("seed", seed)
    _require_rule(label_rule)
    pool = task.demonstration_pool
    if k > len(pool):
        raise TaskError(
            f"{k} demonstrations were asked for, but train of task {task.name!r} has {len(pool)} rows. "
            f"Ask for at most {len(pool)}."
        )
    generator = random.Random(seed)
    shuffled = generator.sample(pool, len(pool))
    if balanced:
        chosen = _take_classes_in_turn(task, shuffled, k)
        generator.shuffle(chosen)
    else:
        chosen = shuffled[:k]
    return Demonstrations(
        task=task.name,
        examples=tuple(chosen),
        labels=_labels_shown(task, chosen, label_rule, seed),
        seed=seed,
        balanced=balanced,
        label_rule=label_rule,
        k_requested=k,
    )


def _require_non_negative(what: str, value: int) -> None:
    if value < 0:
        raise ConfigError(f"{what} {value} is negative. Give 0 or more.")


def _require_rule(rule: str) -> None:
    if rule not in get_args(LabelRule):
        raise ConfigError(f"label rule {rule!r} is unknown. Choose one of: {', '.join(get_args(LabelRule))}.")


def _take_classes_in_turn(task: Task, shuffled: Sequence[Example], k: int) -> list[Example]:
    waiting: dict[int, deque[Example]] = {}
    # Classes take turns in the order in which the shuffle meets them: the odd one out then depends on the seed.
    for example in shuffled:
        waiting.setdefault(example.label, deque()).append(example)
    if not task.is_multiple_choice:
        for label in range(task.n_labels):
            waiting.setdefault(label, deque())
    chosen: list[Example] = []
    while len(chosen) < k:
        for label, examples in waiting.items():
            if len(chosen) == k:
                break
            if not examples:
                raise _class_too_small(task, label, k, n_classes=len(waiting))
            chosen.append(examples.popleft())
    return chosen


def _class_too_small(task: Task, label: int, k: int, n_classes: int) -> TaskError:
    names = task.label_names or task.label_words
    shown = f"label {label} ({names[label]})" if names and not task.is_multiple_choice else f"right choice {label}"
    there = sum(example.label == label for example in task.demonstration_pool)
    return TaskError(
        f"{k} balanced demonstrations need more than {there} rows of {shown}, which is all that train of task "
        f"{task.name!r} has. Ask for at most {there * n_classes}, or draw without balance."
    )


def _labels_shown(
    task: Task,
    chosen: Sequence[Example],
    rule: LabelRule,
    seed: int,
    dealt_from: Sequence[int] | None = None,
    attempt: int = 0,
) -> tuple[int, ...]:
    labels = [example.label for example in chosen] if dealt_from is None else list(dealt_from)
    # A stream of its own: the rule must not change which examples are drawn.
    generator = random.Random(f"{seed}/labels" + (f"/{attempt}" if attempt else ""))
    n_answers = [len(example.choices or ()) if task.is_multiple_choice else task.n_labels for example in chosen]
    if rule == "random":
        return tuple(generator.randrange(n) for n in n_answers)
    if rule == "flipped":
        return tuple((label + 1) % n for label, n in zip(labels, n_answers, strict=True))
    if rule == "shuffled":
        for n in sorted(set(n_answers)):
            places = [place for place, n_here in enumerate(n_answers) if n_here == n]
            dealt = generator.sample([labels[place] for place in places], len(places))
            for place, label in zip(places, dealt, strict=True):
                labels[place] = label
    return tuple(labels)
