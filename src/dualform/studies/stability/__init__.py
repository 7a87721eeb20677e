"""Stability: how much accuracy depends on which demonstrations were drawn, and in which order."""

from dualform.studies.study import study_in

STUDY = study_in(__name__, "StabilityConfig", name="stability", result="StabilityResult")
