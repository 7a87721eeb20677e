"""Selection: how much choosing a seed, an order or a learning rate flatters."""

from dualform.studies.study import Study, View, lazy, lazy_class

_HERE = "dualform.studies.selection"

STUDY = Study(
    name="selection",
    noun="selection",
    config=lazy_class(f"{_HERE}.config:SelectionConfig"),
    configure=lazy(f"{_HERE}.config:selection_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    view=View(
        lazy(f"{_HERE}.words:headlines"),
        lazy(f"{_HERE}.table:selection_tables"),
        lazy(f"{_HERE}.page:render_selection"),
    ),
    reads=lazy("dualform.studies.reads:reads_of_task_study"),
    models=lazy("dualform.studies.reads:models_of"),
)
