"""The laboratory: in-context regression with small models, where theory predicts the numbers."""

from dualform.studies.study import View, lazy, study_in

STUDY = study_in(
    __name__,
    "RegressionConfig",
    name="regress",
    result="LaboratoryResult",
    noun="laboratory",
    written_as="regression",
    configure=lazy(f"{__name__}.config:regression_config"),
    plan_samples=lazy(f"{__name__}.plan:samples"),
    view=View(
        lazy(f"{__name__}.words:headlines"),
        lazy(f"{__name__}.table:claim_tables"),
        lazy(f"{__name__}.page:render_regression"),
        lazy(f"{__name__}.words:notes"),
    ),
)
