"""Folding: what the quality of a fold depends on."""

from dualform.studies.study import Study, View, lazy, lazy_class

_HERE = "dualform.studies.folding"

STUDY = Study(
    name="folding",
    noun="folding",
    config=lazy_class(f"{_HERE}.config:FoldingConfig"),
    configure=lazy(f"{_HERE}.config:folding_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    view=View(
        lazy(f"{_HERE}.words:headlines"), lazy(f"{_HERE}.table:folding_tables"), lazy(f"{_HERE}.page:render_folding")
    ),
    reads=lazy("dualform.studies.reads:reads_of_task_study"),
    models=lazy("dualform.studies.reads:models_of"),
)
