"""What the laboratory found, in words: which claims hold, and which do not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dualform.report.numerals import MISSING, Interval, finite, known
from dualform.report.phrases import capital, plural
from dualform.result import Estimate
from dualform.studies.laboratory.result import Claim, LaboratoryResult, LabStudy

HOLDS = "holds"
FAILS = "does not hold"
FAILS_AS_IT_SHOULD = "must fail: fails, as it should"
HOLDS_WHERE_IT_MUST_NOT = "must fail, but holds"
UNMEASURED = "could not be measured"
MUST_FAIL_UNMEASURED = f"must fail: {UNMEASURED}"


@dataclass(frozen=True)
class Count:
    """How many claims are as they should be."""

    claims: int
    hold: int
    must_fail: int
    """Cases made so that a claim is false."""
    fail: int
    """Those of them in which it is."""
    unmeasured: int = 0
    """Claims and cases without a number, which neither hold nor fail."""

    @property
    def right(self) -> bool:
        """Whether nothing is amiss."""
        return self.hold == self.claims and self.fail == self.must_fail


def counted(claims: Iterable[Claim]) -> Count:
    """Claims that hold, and cases that must fail and do."""
    claims = list(claims)
    plain = [claim for claim in claims if not claim.must_fail]
    broken = [claim for claim in claims if claim.must_fail]
    return Count(
        claims=len(plain),
        hold=sum(map(as_it_should, plain)),
        must_fail=len(broken),
        fail=sum(map(as_it_should, broken)),
        unmeasured=sum(not measured(claim) for claim in claims),
    )


def measured(claim: Claim) -> bool:
    """Whether there is a number for it; without one nothing was put to the test."""
    return finite(claim.found.mean) is not None


def as_it_should(claim: Claim) -> bool:
    """Whether a claim holds, or a case that must fail does; never without a number."""
    return measured(claim) and claim.holds != claim.must_fail


def mark(claim: Claim) -> str:
    """How a claim stands, in words."""
    if not measured(claim):
        return MUST_FAIL_UNMEASURED if claim.must_fail else UNMEASURED
    if claim.must_fail:
        return HOLDS_WHERE_IT_MUST_NOT if claim.holds else FAILS_AS_IT_SHOULD
    return HOLDS if claim.holds else FAILS


def laboratory_verdict(result: LaboratoryResult) -> list[str]:
    """How many claims hold, which do not or could not be measured, and what each study answers.

    Args:
        result: Any result; one without a laboratory has no verdict.

    Returns:
        Plain sentences without markup, which may hold text that others wrote: escape them before they go into a page.
    """
    studies = result.laboratory.studies if result.laboratory is not None else []
    if not studies:
        return []
    count = counted(claim for study in studies for claim in study.claims)
    sentences = [count_sentence(count)]
    for study in studies:
        sentences += [_amiss(study, claim) for claim in study.claims if not as_it_should(claim)]
    return sentences + [f"{capital(study.name)}: {study.answer}" for study in studies if study.answer]


def count_sentence(count: Count) -> str:
    """How many of how many: `31 of 32 claims hold, and 12 of 12 cases that must fail do.`.

    What could not be measured is among neither, and is counted behind: `...; 1 could not be measured.`.
    """
    held = f"{count.hold:,} of {plural(count.claims, 'claim')} {'holds' if count.claims == 1 else 'hold'}"
    failed = f"{count.fail:,} of {plural(count.must_fail, 'case')} that must fail"
    failed += " does" if count.must_fail == 1 else " do"
    parts = [held] * bool(count.claims) + [failed] * bool(count.must_fail)
    if not parts:
        return "No claim was put to the test."
    unmeasured = f"; {count.unmeasured:,} {UNMEASURED}" if count.unmeasured else ""
    return f"{', and '.join(parts)}{unmeasured}."


def _amiss(study: LabStudy, claim: Claim) -> str:
    says = claim.says.rstrip(". ")
    if not measured(claim):
        whose = f"{study.name}, must fail" if claim.must_fail else study.name
        return f"{capital(UNMEASURED)} ({whose}): {says}. Expected {claim.expected.rstrip('. ')}."
    found = found_text(claim.found)
    if claim.must_fail:
        return f"Holds where it must fail ({study.name}): {says}. Found {found}: this run does not tell the case apart."
    return f"Does not hold ({study.name}): {says}. Expected {claim.expected.rstrip('. ')}, found {found}."


def found_text(estimate: Estimate) -> str:
    """`0.2071 (0.2060 to 0.2082)`; the number alone without an interval."""
    interval = f" ({number_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    return number(estimate.mean) + interval


def number(value: float | None) -> str:
    """Four significant digits, thousands grouped: `0.2071`, `1,230`; the largest and smallest as `3.21e-16`.

    What is 1 but for little is told by how little, because that is what was asked: `1 - 2.2e-16`.
    """
    found = finite(value)
    if found is None:
        return MISSING
    if found in (0, 1):
        return str(int(found))
    if abs(found - 1) < 5e-5:
        return f"1 {'+' if found > 1 else '-'} {abs(found - 1):.1e}"
    if not 1e-4 <= abs(found) < 1e6:
        return f"{found:.2e}"
    # Rounded first, for what becomes 10 has one digit more in front.
    found = float(f"{found:.3e}")
    return f"{found:,.{max(0, 3 - math.floor(math.log10(abs(found))))}f}"


def number_interval(interval: Interval) -> str:
    """The same for an interval, as `0.2060 to 0.2082`."""
    ends = known(interval)
    return MISSING if ends is None else f"{number(ends[0])} to {number(ends[1])}"
