"""What arXiv:2212.10559v3 reports, for a run that follows its protocol to stand beside.

Accuracies are those of each task; Rec2FTP, SimAOU, SimAM and Kendall are means over the paper's six tasks.
"""

from dataclasses import dataclass

from dualform.report.measures import measure_of
from dualform.report.palette import learner_style
from dualform.result import Estimate, Result

PRESET = "dai2023"
"""The preset that follows the paper's protocol."""

MODELS = ("1.3B", "2.7B")
"""The paper's two models."""

SIX_TASKS = "mean of six tasks"


@dataclass(frozen=True)
class Beside:
    """One number of this run beside the paper's."""

    title: str
    tasks: str
    """What the paper's numbers are over."""
    run: Estimate | None
    """None where this run has no such number."""
    published: tuple[float, float]
    """Of the smaller and the larger model, in the run's unit."""
    share: bool
    """Whether it is a share of answers, to be written in per cent."""


_MEASURES: tuple[tuple[str, tuple[float, float], tuple[float, float] | None], ...] = (
    ("rec2ftp", (0.8556, 0.8939), None),
    ("sim_aou", (0.186, 0.225), (0.002, -0.001)),
    ("sim_am_before", (0.338, 0.355), None),
    ("sim_am", (0.442, 0.434), None),
    ("kendall", (0.193, 0.214), (0.0, 0.0)),
)
"""Measure, its means over six tasks, and those of the paper's random control."""

_ACCURACIES: dict[str, dict[str, tuple[float, float]]] = {
    "sst2": {"zsl": (0.705, 0.714), "ft": (0.739, 0.769), "icl": (0.927, 0.950)},
    "sst5": {"zsl": (0.393, 0.359), "ft": (0.395, 0.391), "icl": (0.450, 0.465)},
    "mr": {"zsl": (0.659, 0.609), "ft": (0.730, 0.800), "icl": (0.890, 0.913)},
    "subj": {"zsl": (0.726, 0.752), "ft": (0.778, 0.861), "icl": (0.900, 0.903)},
    "agnews": {"zsl": (0.463, 0.398), "ft": (0.653, 0.657), "icl": (0.792, 0.803)},
    "cb": {"zsl": (0.375, 0.429), "ft": (0.554, 0.571), "icl": (0.571, 0.554)},
}
"""Task -> learner -> accuracy."""


def beside_the_paper(result: Result) -> list[Beside]:
    """This run's numbers beside the published ones; empty unless the run followed the paper's protocol."""
    if result.config.get("preset") != PRESET:
        return []
    rows = []
    for key, published, random in _MEASURES:
        title = measure_of(key).title
        rows.append(Beside(title, SIX_TASKS, result.similarity.get(key), published, key == "rec2ftp"))
        if random is not None:
            made_up = result.controls.get("random", {}).get(key)
            rows.append(Beside(f"{title}: random update", SIX_TASKS, made_up, random, False))
    task = str(result.task.get("name"))
    for learner, published in _ACCURACIES.get(task, {}).items():
        title = f"accuracy, {learner_style(learner).title}"
        rows.append(Beside(title, task, result.accuracy.get(learner), published, True))
    return rows
