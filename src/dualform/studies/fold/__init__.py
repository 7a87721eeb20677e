"""`dualform fold`: write one prompt into the weights of one model."""

from dualform.studies.study import View, lazy, study_in

STUDY = study_in(
    __name__,
    "FoldConfig",
    name="fold",
    view=View(
        lazy(f"{__name__}.words:headlines"),
        lazy(f"{__name__}.words:tables"),
        lazy("dualform.studies.comparison.page:render"),
        lazy(f"{__name__}.words:notes"),
    ),
    several_seeds=False,
)
