"""Selection: how much choosing a seed, an order or a learning rate inflates accuracy."""

from dualform.studies.study import study_in

STUDY = study_in(__name__, "SelectionConfig", name="selection", result="SelectionResult")
