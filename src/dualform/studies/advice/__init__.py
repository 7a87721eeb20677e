"""Advice: which learner to use with how many labels, at what accuracy and cost."""

from dualform.studies.study import study_in

STUDY = study_in(__name__, "AdviceConfig", name="advise", noun="advice", result="AdviceResult", written_as="advice")
