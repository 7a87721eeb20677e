"""Momentum: models with momentum attention compared with models without it."""

from dualform.studies.study import View, lazy, study_in

STUDY = study_in(
    __name__,
    "MomentumConfig",
    name="momentum",
    result="MomentumResult",
    configure=lazy(f"{__name__}.config:momentum_config"),
    plan_samples=lazy(f"{__name__}.plan:samples"),
    view=View(
        lazy(f"{__name__}.words:headlines"),
        lazy(f"{__name__}.table:momentum_tables"),
        lazy(f"{__name__}.page:render_momentum"),
        lazy(f"{__name__}.words:notes"),
    ),
    reads=lazy(f"{__name__}.config:reads"),
)
