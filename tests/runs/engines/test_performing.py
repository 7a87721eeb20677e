import pytest
import torch

from dualform.errors import TaskError
from dualform.runs.engines.base import CellJob, JobOutcome
from dualform.runs.engines.performing import LONGEST_MESSAGE, job_to_text, one_line, outcome_from_text, perform_text

WORKS = "tests.runs.engines.works:perform"


def perform(payload: dict[str, object], threads: int = 1, function: str = WORKS) -> JobOutcome:
    return outcome_from_text(perform_text(job_to_text(CellJob("digest", payload), function, threads)))


def test_what_the_work_returns_comes_back_with_its_time():
    outcome = perform({"do": "sleep", "seconds": 0.05, "value": [1.5, float("inf")]})
    assert (outcome.digest, outcome.status, outcome.message) == ("digest", "finished", "")
    assert outcome.facts["value"] == [1.5, float("inf")]
    assert 0.05 <= outcome.seconds < 5


@pytest.mark.parametrize("threads", [1, 2])
def test_torch_gets_the_threads_of_the_work(threads):
    perform({}, threads)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("tests.runs.engines.nowhere:perform", "ModuleNotFoundError"),
        ("tests.runs.engines.works:nothing", "AttributeError"),
    ],
)
def test_a_function_that_cannot_be_found_is_a_failure(function, reason):
    outcome = perform({}, function=function)
    assert outcome.status == "failed"
    assert outcome.message.startswith(reason)
    assert not outcome.mistake


def test_a_hostile_message_becomes_one_harmless_line():
    hostile = "a\x1b[2J\nb\r\0\u202ec" + "<script>" * 200_000
    line = one_line(TaskError(hostile))
    assert line.startswith("TaskError: a\N{REPLACEMENT CHARACTER}[2J b")
    assert line.isprintable()
    assert len(line) == LONGEST_MESSAGE
    assert line.endswith(" …")
    assert not hostile.isprintable()
