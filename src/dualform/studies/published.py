"""The numbers published in arXiv:2212.10559v3, to be compared with those of a run that follows its protocol.

Accuracies are given for each task; Rec2FTP, SimAOU, SimAM and Kendall are means over the paper's six tasks. For
momentum attention the paper reports one run with it and one without, but neither eta nor code.
"""

from dataclasses import dataclass

from dualform.report.measures import measure_of
from dualform.report.palette import learner_style
from dualform.result import Estimate, Result
from dualform.studies.momentum.result import MomentumArm

PRESET = "dai2023"
"""Name of the preset that follows the paper's protocol."""

MODELS = ("1.3B", "2.7B")
"""The paper's two models."""

SIX_TASKS = "mean of six tasks"


@dataclass(frozen=True)
class PaperComparison:
    """One number of this run and the paper's."""

    title: str
    tasks: str
    """The tasks behind the paper's numbers."""
    run: Estimate | None
    """None where this run has no such number."""
    published: tuple[float, float]
    """For the smaller and the larger model, in the run's unit."""
    share: bool
    """Whether it is a share of answers, displayed in per cent."""


_MEASURES: tuple[tuple[str, tuple[float, float], tuple[float, float] | None], ...] = (
    ("rec2ftp", (0.8556, 0.8939), None),
    ("sim_aou", (0.186, 0.225), (0.002, -0.001)),
    ("sim_am_before", (0.338, 0.355), None),
    ("sim_am", (0.442, 0.434), None),
    ("kendall", (0.193, 0.214), (0.0, 0.0)),
)
"""Measure, its mean over six tasks for both models, and the same for the paper's random control."""

_ACCURACIES: dict[str, dict[str, tuple[float, float]]] = {
    "sst2": {"zsl": (0.705, 0.714), "ft": (0.739, 0.769), "icl": (0.927, 0.950)},
    "sst5": {"zsl": (0.393, 0.359), "ft": (0.395, 0.391), "icl": (0.450, 0.465)},
    "mr": {"zsl": (0.659, 0.609), "ft": (0.730, 0.800), "icl": (0.890, 0.913)},
    "subj": {"zsl": (0.726, 0.752), "ft": (0.778, 0.861), "icl": (0.900, 0.903)},
    "agnews": {"zsl": (0.463, 0.398), "ft": (0.653, 0.657), "icl": (0.792, 0.803)},
    "cb": {"zsl": (0.375, 0.429), "ft": (0.554, 0.571), "icl": (0.571, 0.554)},
}
"""Task -> learner -> accuracy."""


MOMENTUM_PERPLEXITY: dict[str, tuple[float, float]] = {
    "256": (19.50, 19.37),
    "512": (16.87, 16.73),
    "1024": (15.14, 15.02),
}
"""Tokens of validation text -> perplexity without and with momentum attention, for models of 350M parameters."""

_MOMENTUM_TRAINING = (17.61, 17.55)
"""The same on training text of 1,024 tokens."""

_MOMENTUM_ACCURACY: dict[str, tuple[float, float]] = {
    "sst5": (0.253, 0.274),
    "imdb": (0.640, 0.703),
    "mr": (0.612, 0.648),
    "cb": (0.439, 0.468),
    "arc-e": (0.482, 0.500),
    "piqa": (0.687, 0.690),
}
"""Task -> in-context accuracy of the same models, without and with momentum attention."""


@dataclass(frozen=True)
class PaperMomentumComparison:
    """One number without and with momentum attention, from the paper (one run each) and from this run."""

    title: str
    published: tuple[float, float]
    run: tuple[Estimate | None, Estimate | None]
    """None where this run has no such number."""
    share: bool
    """Whether it is a share of answers, displayed in per cent."""


def compare_momentum_with_paper(
    vanilla: MomentumArm | None, momentum: MomentumArm | None
) -> list[PaperMomentumComparison]:
    """The paper's numbers for momentum attention and this run's, at the same lengths and on the same tasks.

    Args:
        vanilla: This run's arm without momentum.
        momentum: This run's arm with momentum that is compared with the paper's.
    """
    arms = (vanilla, momentum)

    def perplexities(length: str) -> tuple[Estimate | None, Estimate | None]:
        first, second = (arm.perplexity.get(length) if arm is not None else None for arm in arms)
        return first, second

    def accuracies(task: str) -> tuple[Estimate | None, Estimate | None]:
        by_task = [{score.task: score.accuracy for score in arm.tasks} if arm is not None else {} for arm in arms]
        return by_task[0].get(task), by_task[1].get(task)

    rows = [PaperMomentumComparison("training perplexity, 1,024 tokens", _MOMENTUM_TRAINING, (None, None), share=False)]
    for length, published in MOMENTUM_PERPLEXITY.items():
        title = f"validation perplexity, {int(length):,} tokens"
        rows.append(PaperMomentumComparison(title, published, perplexities(length), share=False))
    for task, published in _MOMENTUM_ACCURACY.items():
        rows.append(PaperMomentumComparison(f"accuracy, {task}", published, accuracies(task), share=True))
    means = [sum(pair[side] for pair in _MOMENTUM_ACCURACY.values()) / len(_MOMENTUM_ACCURACY) for side in (0, 1)]
    rows.append(PaperMomentumComparison("accuracy, mean of the six", (means[0], means[1]), (None, None), share=True))
    return rows


def compare_with_paper(result: Result) -> list[PaperComparison]:
    """This run's numbers and the published ones; empty unless the run followed the paper's protocol."""
    if result.config.get("preset") != PRESET:
        return []
    rows = []
    for key, published, random in _MEASURES:
        title = measure_of(key).title
        rows.append(PaperComparison(title, SIX_TASKS, result.similarity.get(key), published, key == "rec2ftp"))
        if random is not None:
            # The paper's random SimAOU is what `random_released` computes; Kendall's tau is 0 for either control.
            controls = [result.controls.get(name, {}).get(key) for name in ("random_released", "random")]
            control = next((estimate for estimate in controls if estimate is not None), None)
            rows.append(PaperComparison(f"{title}: random update", SIX_TASKS, control, random, False))
    task = str(result.task.get("name"))
    for learner, published in _ACCURACIES.get(task, {}).items():
        title = f"accuracy, {learner_style(learner).title}"
        rows.append(PaperComparison(title, task, result.accuracy.get(learner), published, True))
    return rows
