"""Folding: what the accuracy of a fold depends on."""

from dualform.studies.study import study_in

STUDY = study_in(__name__, "FoldingConfig", name="folding", result="FoldingResult")
