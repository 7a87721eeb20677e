"""Stability: how much accuracy depends on which demonstrations are drawn, and on their order."""

from dualform.studies.study import study_in

STUDY = study_in(__name__, "StabilityConfig", name="stability", result="StabilityResult")
