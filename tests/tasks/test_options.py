import pytest

from dualform.errors import LabelWordError
from dualform.tasks.options import TaskOptions, words_in_order


@pytest.mark.parametrize(
    "given",
    [
        ["down", "up"],
        ("down ", " up"),
        "down,up",
        {"0": "down", "1": "up"},
        ["1=up", "0=down"],
        "1=up, 0=down",
    ],
)
def test_label_words_come_by_order_or_by_value(given):
    assert words_in_order(given, ("0", "1"), "toy") == ("down", "up")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["down"], r"1 label words \(down\) for 2 labels; the labels of task 'toy' are no, yes"),
        ([], r"0 label words \(\) for 2 labels"),
        ("a,b,c", r"3 label words \(a, b, c\)"),
        ({"no": "down", "ja": "up"}, "'up' is given for 'ja', but the labels of task 'toy' are no, yes"),
        (["yes=up"], "label 'no' has no label word"),
    ],
)
def test_label_words_that_do_not_fit_are_named(given, message):
    with pytest.raises(LabelWordError, match=message):
        words_in_order(given, ("no", "yes"), "toy")


def test_settings_given_come_first():
    merged = TaskOptions(text="a").with_defaults(TaskOptions(text="b", label="c"))
    assert merged == TaskOptions(text="a", label="c")
