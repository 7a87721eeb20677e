import math

import pytest

from dualform.report.numerals import MISSING
from dualform.studies.laboratory.words import (
    FAILS,
    FAILS_AS_EXPECTED,
    HOLDS,
    HOLDS_UNEXPECTEDLY,
    MUST_FAIL_UNMEASURED,
    UNMEASURED,
    as_expected,
    count_claims,
    count_sentence,
    estimate_text,
    laboratory_verdict,
    number,
    number_interval,
    status,
)
from tests.report.example_laboratory import claim, estimate, example_laboratory, laboratory, study
from tests.report.example_result import empty_result


def test_the_verdict_has_counts_then_problems_then_the_answer_of_each_study():
    first, *problems, constructed, trained, layers = laboratory_verdict(example_laboratory())
    assert first == "5 of 7 claims hold, and 2 of 3 cases that must fail do; 1 could not be measured."
    assert problems == [
        "Does not hold (trained): Two recurrent layers reach GD++. Expected at most 0.110, measured 0.1312 (0.1270 to "
        "0.1354).",
        "Holds, but must fail (trained): A layer of a wrong rate does so too. Measured 0.2073 (0.2063 to 0.2083).",
        "Could not be measured (trained): What has no number. Expected any number.",
    ]
    assert constructed == "Constructed: It is, to rounding; with softmax in its place it is not."
    assert trained.startswith("Trained: One layer")
    assert layers.startswith("Layers: Mesa")


def test_a_result_without_a_laboratory_has_no_verdict():
    assert laboratory_verdict(empty_result(study="regression")) == []
    assert laboratory_verdict(laboratory()) == []


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ([], "No claim was tested."),
        ([claim()], "1 of 1 claim holds."),
        ([claim(holds=False)], "0 of 1 claim holds."),
        ([claim(), claim()], "2 of 2 claims hold."),
        ([claim(must_fail=True, holds=False)], "1 of 1 case that must fail does."),
        ([claim(), claim(must_fail=True)], "1 of 1 claim holds, and 0 of 1 case that must fail does."),
        ([claim(found=estimate(None))], "0 of 1 claim holds; 1 could not be measured."),
        (
            [claim(), claim(found=estimate(None), holds=False, must_fail=True), claim(found=estimate(None))],
            "1 of 2 claims hold, and 0 of 1 case that must fail does; 2 could not be measured.",
        ),
    ],
)
def test_counts_are_sentences_of_their_own(claims, sentence):
    assert count_sentence(count_claims(claims)) == sentence


@pytest.mark.parametrize(
    ("holds", "must_fail", "words", "right"),
    [
        (True, False, HOLDS, True),
        (False, False, FAILS, False),
        (False, True, FAILS_AS_EXPECTED, True),
        (True, True, HOLDS_UNEXPECTEDLY, False),
    ],
)
def test_a_case_that_must_fail_is_as_expected_only_when_it_fails(holds, must_fail, words, right):
    case = claim(holds=holds, must_fail=must_fail)
    assert (status(case), as_expected(case)) == (words, right)
    assert count_claims([case]).right == right


@pytest.mark.parametrize("mean", [None, math.nan, math.inf])
@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize(("must_fail", "words"), [(False, UNMEASURED), (True, MUST_FAIL_UNMEASURED)])
def test_a_claim_without_a_number_neither_holds_nor_fails_as_expected(mean, holds, must_fail, words):
    case = claim(found=estimate(mean), holds=holds, must_fail=must_fail)
    assert (status(case), as_expected(case)) == (words, False)
    count = count_claims([case, claim(), claim(holds=False, must_fail=True)])
    assert (count.hold, count.fail, count.unmeasured, count.right) == (1, 1, 1, False)
    # The same with a number is what it was.
    assert count_claims([claim(holds=not must_fail, must_fail=must_fail)]).right


def test_a_case_that_could_not_be_measured_is_named_in_the_verdict():
    case = claim("Softmax does so too.", estimate(None), holds=False, must_fail=True, expected="below 1.")
    assert laboratory_verdict(laboratory(study(claims=[case], answer=""))) == [
        "0 of 1 case that must fail does; 1 could not be measured.",
        "Could not be measured (constructed, must fail): Softmax does so too. Expected below 1.",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, MISSING),
        (float("nan"), MISSING),
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (1 - 2**-52, "1 - 2.2e-16"),
        (1 + 3e-5, "1 + 3.0e-05"),
        (0.99994, "0.9999"),
        (0.20712, "0.2071"),
        (0.012345, "0.01235"),
        (0.0001, "0.0001000"),
        (0.0000999, "9.99e-05"),
        (-3.3e-16, "-3.30e-16"),
        (9.99999, "10.00"),
        (6.06, "6.060"),
        (123.456, "123.5"),
        (1230, "1,230"),
        (999_999.9, "1,000,000"),
        (1e6, "1.00e+06"),
        (1e300, "1.00e+300"),
        (-1.0, "-1.000"),
    ],
)
def test_numbers_have_four_digits_and_those_near_one_their_deviation_from_it(value, text):
    assert number(value) == text


def test_an_interval_follows_its_number_where_both_ends_are_known():
    assert estimate_text(estimate(0.2071, 0.001)) == "0.2071 (0.2061 to 0.2081)"
    assert estimate_text(estimate(0.2071)) == "0.2071"
    assert number_interval((None, 1.0)) == MISSING


def test_a_study_without_an_answer_has_no_line_for_it():
    assert laboratory_verdict(laboratory(study(answer=""))) == ["No claim was tested."]
