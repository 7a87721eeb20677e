import json

import pytest

from dualform.report.html import json_for_script
from dualform.report.numerals import MISSING
from dualform.report.page import commands_again, facts
from tests.report.example_result import empty_result
from tests.report.parsed_page import ATTACKS, Page


@pytest.mark.parametrize("attack", ATTACKS)
def test_json_for_a_script_tag_has_no_angle_bracket_and_reads_back(attack):
    written = json_for_script({attack: [attack]})
    assert "<" not in written
    assert json.loads(written) == {attack: [attack]}


def test_json_without_the_escape_would_end_the_script():
    """The case in which the claim fails: plain JSON does not protect."""
    broken = Page(f'<script type="application/json">{json.dumps(ATTACKS[1])}</script>')
    assert "img" in {tag for tag, _ in broken.tags}


def test_json_with_a_number_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="Out of range float values"):
        json_for_script({"mean": float("nan")})


def test_facts_are_readable_whatever_lies_in_them():
    rows = facts({"n_layers": 12000, "share": 0.12345, "nothing": None, "words": [" a", " "], "nested": {"a": (1, 2)}})
    assert rows == [
        ("n layers", "12,000"),
        ("share", "0.123"),
        ("nothing", MISSING),
        ("words", "a, ' '"),
        ("nested", "a: [1, 2]"),
    ]


def test_a_recorded_command_stands_before_one_made_up():
    made_up = ("Repeat the run", "dualform compare a b")
    assert commands_again(empty_result(), made_up)[1:] == [made_up]
    typed = empty_result(environment={"command": "dualform stability a --task t"})
    assert commands_again(typed, made_up)[1:] == [("Repeat the run", "dualform stability a --task t")]
    assert len(commands_again(empty_result())) == 1
