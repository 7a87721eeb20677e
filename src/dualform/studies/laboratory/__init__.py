"""The laboratory: in-context regression with small models, where theory gives the numbers."""

from dualform.studies.study import Study, View, lazy, lazy_class

_HERE = "dualform.studies.laboratory"

STUDY = Study(
    name="regress",
    written_as="regression",
    noun="laboratory",
    config=lazy_class(f"{_HERE}.config:RegressionConfig"),
    configure=lazy(f"{_HERE}.config:regression_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    plan_samples=lazy(f"{_HERE}.plan:samples"),
    view=View(
        lazy(f"{_HERE}.words:laboratory_verdict"),
        lazy(f"{_HERE}.table:claim_tables"),
        lazy(f"{_HERE}.page:render_regression"),
    ),
)
