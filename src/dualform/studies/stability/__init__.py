"""Stability: how much accuracy depends on which demonstrations were drawn, and in which order."""

from dualform.studies.study import Study, View, lazy, lazy_class

_HERE = "dualform.studies.stability"

STUDY = Study(
    name="stability",
    noun="stability",
    config=lazy_class(f"{_HERE}.config:StabilityConfig"),
    configure=lazy(f"{_HERE}.config:stability_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    view=View(
        lazy(f"{_HERE}.words:headlines"),
        lazy(f"{_HERE}.table:stability_tables"),
        lazy(f"{_HERE}.page:render_stability"),
    ),
    reads=lazy("dualform.studies.reads:reads_of_task_study"),
    models=lazy("dualform.studies.reads:models_of"),
)
