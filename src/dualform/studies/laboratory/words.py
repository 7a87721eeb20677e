"""Sentences about a result of the laboratory: which claims hold, and which do not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dualform.report.numerals import MISSING, Interval, finite, known
from dualform.report.phrases import capital, leading_sentences, plural
from dualform.result import Estimate
from dualform.studies.laboratory.result import Claim, LaboratoryResult, LabStudy

HOLDS = "holds"
FAILS = "does not hold"
FAILS_AS_EXPECTED = "fails, as it must"
HOLDS_UNEXPECTEDLY = "must fail, but holds"
UNMEASURED = "could not be measured"
MUST_FAIL_UNMEASURED = f"must fail: {UNMEASURED}"


@dataclass(frozen=True)
class Count:
    """How many claims hold, and how many of the cases that must fail do."""

    claims: int
    """Claims, without the cases that must fail."""
    hold: int
    """Claims that hold."""
    must_fail: int
    """Cases constructed so that a claim is false."""
    fail: int
    """Cases of these that do fail."""
    unmeasured: int = 0
    """Claims and cases without a number; they neither hold nor fail."""

    @property
    def right(self) -> bool:
        """Whether every claim holds and every case that must fail does."""
        return self.hold == self.claims and self.fail == self.must_fail


def count_claims(claims: Iterable[Claim]) -> Count:
    """Counts of claims that hold and of cases that fail as they must."""
    claims = list(claims)
    plain = [claim for claim in claims if not claim.must_fail]
    cases = [claim for claim in claims if claim.must_fail]
    return Count(
        claims=len(plain),
        hold=sum(map(as_expected, plain)),
        must_fail=len(cases),
        fail=sum(map(as_expected, cases)),
        unmeasured=sum(not measured(claim) for claim in claims),
    )


def measured(claim: Claim) -> bool:
    """Whether the claim has a number; without one it was not tested."""
    return finite(claim.found.mean) is not None


def as_expected(claim: Claim) -> bool:
    """Whether a claim holds, or a case that must fail does. False without a number."""
    return measured(claim) and claim.holds != claim.must_fail


def status(claim: Claim) -> str:
    """Status of a claim in words, such as `holds` or `fails, as it must`."""
    if not measured(claim):
        return MUST_FAIL_UNMEASURED if claim.must_fail else UNMEASURED
    if claim.must_fail:
        return HOLDS_UNEXPECTEDLY if claim.holds else FAILS_AS_EXPECTED
    return HOLDS if claim.holds else FAILS


def headlines(result: LaboratoryResult) -> list[str]:
    """At most four of the sentences of `laboratory_verdict`: the number of claims that hold, then the first others."""
    first, *others = laboratory_verdict(result) or [""]
    return leading_sentences([first], *([sentence] for sentence in others)) if first else []


def notes(result: LaboratoryResult) -> list[str]:
    """The claims that are not as expected."""
    studies = result.laboratory.studies if result.laboratory is not None else []
    return [_problem(study, claim) for study in studies for claim in study.claims if not as_expected(claim)]


def laboratory_verdict(result: LaboratoryResult) -> list[str]:
    """How many claims hold, which do not or could not be measured, and each study's answer.

    Args:
        result: Result of the laboratory. Without any study the list is empty.

    Returns:
        Plain sentences without markup. They may contain text from outside: escape them before they go into a page.
    """
    studies = result.laboratory.studies if result.laboratory is not None else []
    if not studies:
        return []
    count = count_claims(claim for study in studies for claim in study.claims)
    sentences = [count_sentence(count)]
    for study in studies:
        sentences += [_problem(study, claim) for claim in study.claims if not as_expected(claim)]
    return sentences + [f"{capital(study.name)}: {study.answer}" for study in studies if study.answer]


def count_sentence(count: Count) -> str:
    """Such as `31 of 32 claims hold, and 12 of 12 cases that must fail do; 1 could not be measured.`."""
    hold = f"{count.hold:,} of {plural(count.claims, 'claim')} {'holds' if count.claims == 1 else 'hold'}"
    fail = f"{count.fail:,} of {plural(count.must_fail, 'case')} that must fail"
    fail += " does" if count.must_fail == 1 else " do"
    parts = [hold] * bool(count.claims) + [fail] * bool(count.must_fail)
    if not parts:
        return "No claim was tested."
    unmeasured = f"; {count.unmeasured:,} {UNMEASURED}" if count.unmeasured else ""
    return f"{', and '.join(parts)}{unmeasured}."


def _problem(study: LabStudy, claim: Claim) -> str:
    says = claim.says.rstrip(". ")
    if not measured(claim):
        name = f"{study.name}, must fail" if claim.must_fail else study.name
        return f"{capital(UNMEASURED)} ({name}): {says}. Expected {claim.expected.rstrip('. ')}."
    estimate = estimate_text(claim.found)
    if claim.must_fail:
        return f"Holds, but must fail ({study.name}): {says}. Measured {estimate}."
    return f"Does not hold ({study.name}): {says}. Expected {claim.expected.rstrip('. ')}, measured {estimate}."


def estimate_text(estimate: Estimate) -> str:
    """`0.2071 (0.2060 to 0.2082)`; the number alone without an interval."""
    interval = f" ({number_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    return number(estimate.mean) + interval


def number(value: float | None) -> str:
    """Four significant digits, thousands grouped: `0.2071`, `1,230`; the largest and smallest as `3.21e-16`.

    A value within 5e-5 of 1 is written with its deviation, such as `1 - 2.2e-16`.
    """
    x = finite(value)
    if x is None:
        return MISSING
    if x in (0, 1):
        return str(int(x))
    if abs(x - 1) < 5e-5:
        return f"1 {'+' if x > 1 else '-'} {abs(x - 1):.1e}"
    if not 1e-4 <= abs(x) < 1e6:
        return f"{x:.2e}"
    # Round first: 9.9999 becomes 10.00, which has one decimal fewer.
    x = float(f"{x:.3e}")
    return f"{x:,.{max(0, 3 - math.floor(math.log10(abs(x))))}f}"


def number_interval(interval: Interval) -> str:
    """An interval in the format of `number`, such as `0.2060 to 0.2082`."""
    ends = known(interval)
    return MISSING if ends is None else f"{number(ends[0])} to {number(ends[1])}"
