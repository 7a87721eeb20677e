"""Demonstrations: the labelled examples given to every learner, their order and their labels."""

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
    """An ordered selection of examples, with the label shown for each.

    Raises:
        ConfigError: The numbers of examples and labels differ.
    """

    task: str
    """Name of the task."""
    examples: tuple[Example, ...] = field(repr=False)
    labels: tuple[int, ...]
    """The labels shown, after applying the label rule; `examples` keep the true labels."""
    seed: int
    balanced: bool
    label_rule: LabelRule
    k_requested: int

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.labels):
            raise ConfigError(
                f"{len(self.examples)} demonstrations were given with {len(self.labels)} labels. Give one label for "
                "each."
            )

    @property
    def k_effective(self) -> int:
        """Number of demonstrations, which is below `k_requested` after truncation."""
        return len(self.examples)

    @property
    def rows(self) -> tuple[int, ...]:
        """Row numbers in the train split's file, in order."""
        return tuple(example.row for example in self.examples)

    def reordered(self, number: int) -> "Demonstrations":
        """The same demonstrations in order number `number`; 0 is the order in which they were drawn.

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
        """Number of different orders: k! for k different demonstrations, fewer if some are equal."""
        orders = math.factorial(self.k_effective)
        for times in Counter(self._contents).values():
            orders //= math.factorial(times)
        return orders

    def in_orders(self, n: int) -> "tuple[Demonstrations, ...]":
        """The same demonstrations in up to `n` different orders, starting with the order in which they were drawn."""
        orders: dict[tuple[object, ...], Demonstrations] = {}
        # Exchanging two equal demonstrations does not give a different order.
        most = min(n, self.n_orders)
        number = 0
        while len(orders) < most:
            reordered = self.reordered(number)
            orders.setdefault(reordered._contents, reordered)
            number += 1
        return tuple(orders.values())

    @property
    def _contents(self) -> tuple[object, ...]:
        """Fields, choices and label of each demonstration: a model cannot distinguish two in which these agree."""
        return tuple(
            (tuple(sorted(example.fields.items())), example.choices, label)
            for example, label in zip(self.examples, self.labels, strict=True)
        )

    def labelled_otherwise(self, task: Task, rule: LabelRule) -> "Demonstrations | None":
        """The same demonstrations with at least one label changed.

        Args:
            task: Task of the demonstrations.
            rule: How to change the labels shown: `shuffled` or `random`.

        Returns:
            The demonstrations; None if 100 attempts changed no label, as for a single one or equal labels.
        """
        for attempt in range(_ATTEMPTS):
            labels = _apply_label_rule(task, self.examples, rule, self.seed, self.labels, attempt)
            if labels != self.labels:
                return replace(self, labels=labels, label_rule=rule)
        return None

    def relabelled(self, task: Task, rule: LabelRule) -> "Demonstrations":
        """The same demonstrations in the same order, with labels by another rule.

        Raises:
            ConfigError: `rule` is unknown.
        """
        _require_rule(rule)
        return replace(self, labels=_apply_label_rule(task, self.examples, rule, self.seed), label_rule=rule)

    def at(self, indices: Sequence[int]) -> "Demonstrations":
        """Some of the demonstrations, by their place."""
        return replace(
            self,
            examples=tuple(self.examples[index] for index in indices),
            labels=tuple(self.labels[index] for index in indices),
        )

    def classes_in_turn(self, k: int) -> "Demonstrations":
        """At most `k` demonstrations, the classes taken in turn, in the order of this selection.

        A class with too few demonstrations gives all that it has, so that only the labels of this selection matter.

        Raises:
            ConfigError: `k` is negative.
        """
        _require_non_negative("number of demonstrations", k)
        waiting: dict[int, deque[int]] = {}
        for index, label in enumerate(self.labels):
            waiting.setdefault(label, deque()).append(index)
        chosen: list[int] = []
        while waiting and len(chosen) < k:
            for label in list(waiting):
                if len(chosen) < k:
                    chosen.append(waiting[label].popleft())
                if not waiting[label]:
                    del waiting[label]
        return self.at(sorted(chosen))

    def without(self, others: "Demonstrations") -> "Demonstrations":
        """The demonstrations that are not among `others`, by row."""
        rows = set(others.rows)
        return self.at([index for index, example in enumerate(self.examples) if example.row not in rows])

    def followed_by(self, others: "Demonstrations") -> "Demonstrations":
        """These demonstrations and then `others`."""
        return replace(self, examples=self.examples + others.examples, labels=self.labels + others.labels)

    def truncated(self, k: int) -> "Demonstrations":
        """The first `k` demonstrations (all of them if there are fewer).

        Raises:
            ConfigError: `k` is negative.
        """
        _require_non_negative("number of demonstrations", k)
        return replace(self, examples=self.examples[:k], labels=self.labels[:k])


def draw_demonstrations(
    task: Task, k: int, seed: int, *, balanced: bool = False, label_rule: LabelRule = "true"
) -> Demonstrations:
    """Draw demonstrations from the train split, without replacement.

    The same seed gives the same examples in the same order under every label rule, so that a control differs only in
    its labels.

    Args:
        task: The task to draw from.
        k: Number of demonstrations; 0 gives an empty selection.
        seed: 0 or more.
        balanced: False shuffles train and takes the first k rows, as in the paper; smaller selections are then prefixes
            of larger ones. True takes the classes in turn along the same shuffle, so that their counts differ by at
            most one, and shuffles the result. For multiple choice, the class is the index of the correct choice.
        label_rule: `true` keeps the labels. `shuffled` permutes the labels of the selection, so that their counts
            stay the same and some examples may keep their label. `random` draws uniformly from all labels, including
            the true one. `flipped` replaces each label by the next one, so that no label is true (with two labels,
            they are swapped). For multiple choice, labels are permuted among examples with the same number of choices.

    Raises:
        ConfigError: `k` or `seed` is negative, or `label_rule` is unknown.
        TaskError: Train, or one of its classes, has too few rows.

    Source:
        Selection: arXiv:2212.10559v3, released code (not class-balanced, in shuffled order). Random labels:
        arXiv:2202.12837, section 4.
    """
    _require_non_negative("number of demonstrations", k)
    # random.Random takes the absolute value of a seed, so -1 and 1 would give the same selection.
    _require_non_negative("seed", seed)
    _require_rule(label_rule)
    pool = task.demonstration_pool
    if k > len(pool):
        raise TaskError(
            f"{k} demonstrations were requested, but train of task {task.name!r} has {len(pool)} rows. "
            f"Request at most {len(pool)}."
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
        labels=_apply_label_rule(task, chosen, label_rule, seed),
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
    # In the order of the shuffle, so that the class that gets one more depends on the seed.
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
    label_text = (
        f"label {label} ({names[label]})" if names and not task.is_multiple_choice else f"correct choice {label}"
    )
    n_rows = sum(example.label == label for example in task.demonstration_pool)
    return TaskError(
        f"train of task {task.name!r} has {n_rows} rows with {label_text}, too few for {k} balanced "
        f"demonstrations. Request at most {n_rows * n_classes}, or draw without balancing the classes."
    )


def _apply_label_rule(
    task: Task,
    chosen: Sequence[Example],
    rule: LabelRule,
    seed: int,
    dealt_from: Sequence[int] | None = None,
    attempt: int = 0,
) -> tuple[int, ...]:
    labels = [example.label for example in chosen] if dealt_from is None else list(dealt_from)
    # A separate stream of random numbers, so that the rule does not change which examples are drawn.
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
