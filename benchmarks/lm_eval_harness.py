"""The same job in lm-eval, the tool that most published few-shot numbers come from.

lm-eval gets the same checkpoint, the same demonstrations as text in front of each prompt, and the label words as
continuations. Its batch size is 1 and then a few; its `auto` is left out, because on a processor the search for a size
only ends when memory does. The faster of the two stands in the table.
"""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.common import Job, Outcome, Patience, Size, seconds
from dualform.models.reading.encoding import Encoder

NAME = "lm-eval: its time a query over ours"
TARGET = 40.0


@dataclass(frozen=True)
class _Question:
    context: str
    continuations: tuple[str, ...]


def run(job: Job, size: Size, checkpoint: str) -> list[Outcome]:
    """Alternate our whole job with a handful of queries in lm-eval.

    Args:
        job: Ours.
        size: How much.
        checkpoint: Folder of the job's model.
    """
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        reason = "not run: lm-eval is not installed; pip install 'dualform[bench]' brings it"
        return [Outcome(NAME, (), "at least", TARGET, reason)]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    questions = _questions(job, size.harness_queries)
    requests = [
        Instance("loglikelihood", {}, (question.context, continuation), number)
        for number, question in enumerate(questions)
        for continuation in question.continuations
    ]
    harness: dict[int, Any] = {
        batch: HFLM(pretrained=checkpoint, device="cpu", dtype="float32", batch_size=batch)
        for batch in sorted({1, min(4, len(questions))})
    }
    ours = _ours(job)
    tables = {batch: _table(lm.loglikelihood(requests, disable_tqdm=True), questions) for batch, lm in harness.items()}
    expected = ours[: len(questions)]
    difference = max(float((table - expected).abs().max()) for table in tables.values())
    same = all(bool((table.argmax(1) == expected.argmax(1)).all()) for table in tables.values())
    context = next(iter(harness.values())).tok_encode(questions[0].context)
    same_tokens = tuple(context) == job.encoded.prefix + job.queries[0].prompt

    patience = Patience(size.patience)
    calls: dict[str, tuple[Callable[[], object], int]] = {"ours": (partial(_ours, job), len(job.queries))}
    for batch, lm in harness.items():
        calls[f"batch {batch}"] = (partial(lm.loglikelihood, requests, disable_tqdm=True), len(questions))
    rounds = [
        {name: patience.undisturbed(partial(seconds, call)) / n for name, (call, n) in calls.items()}
        for _ in range(size.rounds)
    ]
    ratios = {name: tuple(times[name] / times["ours"] for times in rounds) for name in (f"batch {b}" for b in harness)}
    fastest = min(ratios, key=lambda name: statistics.median(ratios[name]))
    detail = (
        f"{fastest} of {', '.join(ratios)}; {'the same' if same else 'DIFFERENT'} predictions, log-probabilities "
        f"within {difference:.1e}" + ("" if same_tokens else "; tokens differ")
    )
    raw = {
        "seconds_a_query": rounds,
        "others": patience.others,
        "ratios": ratios,
        "largest_difference": difference,
        "same_predictions": same,
        "same_tokens": same_tokens,
        "harness_queries": len(questions),
    }
    return [Outcome(NAME, ratios[fastest], "at least", TARGET, detail, raw)]


def _questions(job: Job, n: int) -> list[_Question]:
    """Context and continuations of the first queries, as text."""
    tokenizer, task = job.lm.tokenizer, job.task
    separator = task.template.separator if task.template.separator is not None else str(tokenizer.eos_token)
    demonstrations = "".join(
        task.template.render(example) + task.answers(example)[label] + separator
        for example, label in zip(job.demonstrations.examples, job.demonstrations.labels, strict=True)
    )
    opening = tokenizer.decode(list(job.opening))
    return [
        _Question(opening + demonstrations + task.template.render(example), task.answers(example))
        for example in job.examples[:n]
    ]


def _ours(job: Job) -> torch.Tensor:
    """The whole job from text, `(example, answer)`: lm-eval tokenises within its time too."""
    encoder = Encoder(job.lm, job.task)
    prefix = job.lm.encode(encoder.demonstrations(job.demonstrations).prefix)
    return job.lm.log_probabilities(prefix, [encoder.query(example) for example in job.examples])


def _table(answers: list[tuple[float, bool]], questions: list[_Question]) -> torch.Tensor:
    """Log-likelihoods `(example, answer)`; ours are means over an answer's tokens, and label words have one."""
    return torch.tensor([value for value, _ in answers], dtype=torch.float64).view(len(questions), -1)
