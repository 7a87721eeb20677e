"""Fold: one prompt written into the weights of one model, for good."""

from dualform.studies.study import Study, View, lazy, lazy_class

_HERE = "dualform.studies.fold"

STUDY = Study(
    name="fold",
    noun="fold",
    config=lazy_class(f"{_HERE}.config:FoldConfig"),
    configure=lazy(f"{_HERE}.config:fold_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    view=View(
        lazy(f"{_HERE}.words:fold_verdict"),
        lazy(f"{_HERE}.words:tables"),
        lazy("dualform.studies.comparison.page:render_comparison"),
    ),
    reads=lazy("dualform.studies.reads:reads_of_task_study"),
    models=lazy("dualform.studies.reads:models_of"),
    several_seeds=False,
)
