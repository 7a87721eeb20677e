from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualform.errors import ConfigError, TaskError
from dualform.tasks.demonstrations import Demonstrations, LabelRule, draw_demonstrations
from dualform.tasks.task import Example
from tests.tasks.conftest import build

LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=40)
SEEDS = st.integers(0, 1000)
WORDS = ("bad", "fair", "good")


@given(labels=LABELS, seed=SEEDS, data=st.data())
def test_draws_are_without_replacement_and_smaller_ones_are_prefixes(make_task, labels, seed, data):
    task = make_task(labels, words=WORDS)
    k = data.draw(st.integers(0, len(labels)))
    fewer = data.draw(st.integers(0, k))
    drawn = draw_demonstrations(task, k, seed)
    assert len(set(drawn.rows)) == k == drawn.k_effective
    assert draw_demonstrations(task, fewer, seed).rows == drawn.rows[:fewer] == drawn.truncated(fewer).rows
    assert drawn.labels == tuple(labels[row] for row in drawn.rows)


@given(per_class=st.integers(1, 12), spare=st.lists(st.integers(0, 2), max_size=20), seed=SEEDS, data=st.data())
def test_balanced_counts_differ_by_at_most_one(make_task, per_class, spare, seed, data):
    task = make_task([*(label for label in range(3) for _ in range(per_class)), *spare], words=WORDS)
    k = data.draw(st.integers(0, 3 * per_class))
    drawn = draw_demonstrations(task, k, seed, balanced=True)
    counts = Counter(example.label for example in drawn.examples)
    assert max(counts[label] for label in range(3)) - min(counts[label] for label in range(3)) <= 1
    assert len(set(drawn.rows)) == k


def test_the_papers_rule_is_not_balanced(make_task):
    task = make_task([0] * 90 + [1] * 10)
    counts = Counter(draw_demonstrations(task, 20, 0).labels)
    assert counts[0] - counts[1] > 1


def test_balanced_classes_do_not_alternate(make_task):
    task = make_task([0, 1] * 50)
    orders = {draw_demonstrations(task, 16, seed, balanced=True).labels for seed in range(5)}
    assert len(orders) == 5
    assert not any(labels in ((0, 1) * 8, (1, 0) * 8) for labels in orders)


def test_the_seed_alone_decides(make_task):
    task = make_task([0, 1] * 20)
    assert draw_demonstrations(task, 8, 3) == draw_demonstrations(task, 8, 3)
    assert draw_demonstrations(task, 8, 3).rows != draw_demonstrations(task, 8, 4).rows


def test_the_draw_is_the_same_on_every_platform_and_release(make_task):
    assert draw_demonstrations(make_task([0, 1] * 10), 5, 1).rows == (4, 18, 2, 8, 3)


@given(labels=st.lists(st.integers(0, 2), min_size=4, max_size=40), seed=SEEDS)
def test_label_rules_change_labels_and_nothing_else(make_task, labels, seed):
    task = make_task(labels, words=WORDS)
    true = draw_demonstrations(task, 4, seed)
    shuffled = draw_demonstrations(task, 4, seed, label_rule="shuffled")
    random = draw_demonstrations(task, 4, seed, label_rule="random")
    assert true.examples == shuffled.examples == random.examples
    assert Counter(shuffled.labels) == Counter(true.labels)
    assert set(random.labels) <= {0, 1, 2}


def test_shuffled_labels_do_move_and_random_ones_change_their_counts(make_task):
    task = make_task([0, 1] * 50)
    true = draw_demonstrations(task, 30, 1)
    assert draw_demonstrations(task, 30, 1, label_rule="shuffled").labels != true.labels
    random = draw_demonstrations(make_task([0] * 60 + [1]), 60, 1, label_rule="random")
    assert 15 < sum(random.labels) < 45  # about half of 60, though nearly all true labels are 0


def test_dealt_labels_stay_within_each_examples_own_choices(make_task):
    wide = tuple(Example({"text": f"wide {row}"}, 3, row, ("a", "b", "c", "d")) for row in range(5))
    narrow = tuple(Example({"text": f"narrow {row}"}, row % 2, row, ("a", "b")) for row in range(5, 15))
    task = make_task([0], words=None, choices=("a", "b"))
    pool = {**task.splits, "train": wide + narrow}
    task = make_task([0], words=None, choices=("a", "b"), splits=pool)
    for rule in ("shuffled", "random"):
        drawn = draw_demonstrations(task, 15, 2, label_rule=rule)
        assert all(label < len(e.choices or ()) for e, label in zip(drawn.examples, drawn.labels, strict=True))


def test_balanced_multiple_choice_balances_the_index_of_the_right_choice(make_task):
    task = make_task([0] * 30 + [1] * 6, words=None, choices=("a", "b"))
    assert Counter(draw_demonstrations(task, 12, 0, balanced=True).labels) == {0: 6, 1: 6}
    with pytest.raises(TaskError, match="has 6 rows with correct choice 1"):
        draw_demonstrations(task, 14, 0, balanced=True)


def test_no_demonstrations_are_an_empty_selection(make_task):
    drawn = draw_demonstrations(make_task([0, 1]), 0, 1, balanced=True, label_rule="shuffled")
    assert (drawn.examples, drawn.labels, drawn.rows, drawn.k_effective) == ((), (), (), 0)


def test_truncation_keeps_what_was_asked_for_and_never_lengthens(make_task):
    drawn = draw_demonstrations(make_task([0, 1] * 5), 6, 1, label_rule="shuffled")
    cut = drawn.truncated(4)
    assert (cut.k_requested, cut.k_effective, cut.labels) == (6, 4, drawn.labels[:4])
    assert drawn.truncated(99) == drawn
    with pytest.raises(ConfigError, match="-1 is negative"):
        drawn.truncated(-1)


@given(k=st.integers(0, 12), seed=SEEDS, number=st.integers(0, 5))
def test_another_order_is_the_same_demonstrations_with_their_labels(make_task, k, seed, number):
    drawn = draw_demonstrations(make_task([0, 1] * 6), k, seed, label_rule="random")
    other = drawn.reordered(number)
    assert sorted(zip(other.rows, other.labels, strict=True)) == sorted(zip(drawn.rows, drawn.labels, strict=True))
    assert other.examples == tuple(drawn.examples[drawn.rows.index(row)] for row in other.rows)
    assert drawn.reordered(number) == other
    unchanged = ("task", "seed", "balanced", "label_rule", "k_requested")
    assert [getattr(other, name) for name in unchanged] == [getattr(drawn, name) for name in unchanged]


def test_order_0_is_the_order_drawn(make_task):
    drawn = draw_demonstrations(make_task([0, 1] * 8), 8, 3)
    assert drawn.reordered(0) is drawn


def test_orders_differ_by_number_and_by_seed(make_task):
    task = make_task([0, 1] * 20)
    drawn = draw_demonstrations(task, 12, 3)
    assert len({drawn.reordered(number).rows for number in range(20)}) == 20
    places = {
        tuple(drawn.rows.index(row) for row in drawn.reordered(1).rows)
        for drawn in (draw_demonstrations(task, 12, seed) for seed in range(10))
    }
    assert len(places) == 10


def test_orders_are_drawn_evenly(make_task):
    drawn = draw_demonstrations(make_task([0, 1, 0]), 3, 0)
    counts = Counter(drawn.reordered(number).rows for number in range(1, 601))
    # Six orders of a hundred each; four standard deviations are 37.
    assert len(counts) == 6
    assert all(abs(count - 100) < 37 for count in counts.values())


def test_an_order_before_the_first_is_refused(make_task):
    with pytest.raises(ConfigError, match="order -1 is negative"):
        draw_demonstrations(make_task([0, 1]), 2, 0).reordered(-1)


@given(labels=LABELS, seed=SEEDS)
def test_labels_shown_by_another_rule_are_those_drawn_under_it(make_task, labels, seed):
    task = make_task(labels, words=WORDS)
    drawn = draw_demonstrations(task, len(labels), seed)
    for rule in ("true", "shuffled", "random", "flipped"):
        under = draw_demonstrations(task, len(labels), seed, label_rule=rule)
        assert drawn.relabelled(task, rule) == under
        # From any rule back to the true ones.
        assert under.relabelled(task, "true") == drawn
        assert under.rows == drawn.rows


@given(labels=LABELS, seed=SEEDS)
def test_flipped_labels_are_never_true_and_keep_classes_apart(make_task, labels, seed):
    task = make_task(labels, words=WORDS)
    drawn = draw_demonstrations(task, len(labels), seed, label_rule="flipped")
    assert not any(shown == example.label for shown, example in zip(drawn.labels, drawn.examples, strict=True))
    # Each class under one other name: nothing is lost but what the names mean.
    pairs = {(example.label, shown) for shown, example in zip(drawn.labels, drawn.examples, strict=True)}
    assert len(pairs) == len(set(labels)) == len({shown for _, shown in pairs})
    assert all(0 <= shown < 3 for shown in drawn.labels)


def test_two_flipped_labels_are_swapped(make_task):
    drawn = draw_demonstrations(make_task([0, 1, 1, 0]), 4, 0, label_rule="flipped")
    assert drawn.labels == tuple(1 - example.label for example in drawn.examples)


def test_random_labels_may_be_true_where_flipped_ones_are_not(make_task):
    task = make_task([0, 1] * 20)
    shares: dict[LabelRule, float] = {"random": 0.5, "flipped": 0.0, "true": 1.0}
    for rule, share in shares.items():
        drawn = [draw_demonstrations(task, 40, seed, label_rule=rule) for seed in range(25)]
        right = [
            shown == example.label for each in drawn for shown, example in zip(each.labels, each.examples, strict=True)
        ]
        assert sum(right) / len(right) == pytest.approx(share, abs=0.06)


def test_flipped_choices_stay_among_an_examples_own():
    examples = [Example({"text": f"t{i}"}, i % 2, i, ("a", "b", "c")[: 2 + i % 2]) for i in range(8)]
    task = build([0], words=None, choices=("a", "b"), splits={
        "train": tuple(examples), "validation": (examples[0],), "test": (examples[0],),
    })  # fmt: skip
    drawn = draw_demonstrations(task, 8, 1, label_rule="flipped")
    for shown, example in zip(drawn.labels, drawn.examples, strict=True):
        assert shown == (example.label + 1) % len(example.choices or ())


def test_reordering_after_relabelling_moves_each_label_with_its_example(make_task):
    task = make_task([0, 1] * 6)
    drawn = draw_demonstrations(task, 8, 2)
    one = drawn.relabelled(task, "shuffled").reordered(3)
    shown = dict(zip(one.rows, one.labels, strict=True))
    assert [shown[row] for row in drawn.rows] == list(drawn.relabelled(task, "shuffled").labels)


def test_truncating_does_not_change_which_labels_are_flipped(make_task):
    task = make_task([0, 1] * 6)
    drawn = draw_demonstrations(task, 8, 2)
    assert drawn.truncated(5).relabelled(task, "flipped").labels == drawn.relabelled(task, "flipped").labels[:5]


def test_an_unknown_rule_for_labels_is_refused_with_those_there_are(make_task):
    task = make_task([0, 1])
    with pytest.raises(ConfigError, match=r"label rule 'wrong' is unknown\. .*: true, shuffled, random, flipped\."):
        draw_demonstrations(task, 2, 0).relabelled(task, "wrong")  # type: ignore[arg-type]


def test_more_than_the_pool_holds_is_refused_with_both_numbers(make_task):
    with pytest.raises(TaskError, match=r"9 demonstrations .* 'toy' has 4 rows"):
        draw_demonstrations(make_task([0, 1, 0, 1]), 9, 1)


def test_a_class_too_small_for_balance_is_named(make_task):
    task = make_task([0] * 20 + [1] * 3, label_names=("negative", "positive"))
    with pytest.raises(TaskError, match=r"has 3 rows with label 1 \(positive\), too few for 8 .* at most 6"):
        draw_demonstrations(task, 8, 1, balanced=True)
    assert draw_demonstrations(task, 6, 1, balanced=True).k_effective == 6
    with pytest.raises(TaskError, match=r"has 0 rows with label 1 \(good\)"):
        draw_demonstrations(make_task([0] * 9), 4, 1, balanced=True)


@pytest.mark.parametrize(
    ("k", "seed", "rule", "message"),
    [(-2, 1, "true", "-2 is negative"), (2, -1, "true", "seed -1"), (2, 1, "fals", "'fals' .* true, shuffled, random")],
)
def test_settings_that_mean_nothing_are_refused(make_task, k, seed, rule, message):
    with pytest.raises(ConfigError, match=message):
        draw_demonstrations(make_task([0, 1]), k, seed, label_rule=rule)


def test_each_demonstration_has_one_label():
    with pytest.raises(ConfigError, match="0 demonstrations were given with 1 labels"):
        Demonstrations("toy", (), (1,), 0, False, "true", 1)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 30))
def test_orders_are_as_many_as_differ_and_no_two_are_the_same(kinds, n):
    examples = tuple(Example({"text": f"text {kind}"}, kind % 2, row) for row, kind in enumerate(kinds))
    drawn = Demonstrations(
        "toy", examples, tuple(example.label for example in examples), 0, False, "true", len(examples)
    )

    def shown(one: Demonstrations) -> tuple[tuple[str, int], ...]:
        return tuple((example.fields["text"], label) for example, label in zip(one.examples, one.labels, strict=True))

    different = set(permutations(shown(drawn)))
    orders = drawn.in_orders(n)

    assert drawn.n_orders == len(different)
    assert orders[0] == drawn
    assert len({shown(one) for one in orders}) == len(orders) == min(n, len(different))
    assert {shown(one) for one in orders} <= different


def test_equal_texts_with_different_labels_have_different_orders():
    examples = tuple(Example({"text": "the same"}, label, row) for row, label in enumerate([0, 1, 1]))
    drawn = Demonstrations("toy", examples, (0, 1, 1), 0, False, "true", 3)

    assert drawn.n_orders == 3
    assert sorted(one.labels for one in drawn.in_orders(9)) == [(0, 1, 1), (1, 0, 1), (1, 1, 0)]
