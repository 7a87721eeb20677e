"""Momentum: models with momentum attention next to vanilla ones."""

from dualform.studies.study import Study, View, lazy, lazy_class

_HERE = "dualform.studies.momentum"

STUDY = Study(
    name="momentum",
    noun="momentum",
    config=lazy_class(f"{_HERE}.config:MomentumConfig"),
    configure=lazy(f"{_HERE}.config:momentum_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    plan_samples=lazy(f"{_HERE}.plan:samples"),
    view=View(
        lazy(f"{_HERE}.words:momentum_verdict"),
        lazy(f"{_HERE}.table:momentum_tables"),
        lazy(f"{_HERE}.page:render_momentum"),
    ),
    reads=lazy(f"{_HERE}.config:reads"),
)
