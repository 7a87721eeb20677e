"""Compare: one model adapted to the same demonstrations in every way, looked into, and compared."""

from dualform.studies.study import SeedBySeed, Study, View, lazy, lazy_class

_HERE = "dualform.studies.comparison"

STUDY = Study(
    name="compare",
    written_as="comparison",
    noun="comparison",
    config=lazy_class(f"{_HERE}.config:ComparisonConfig"),
    configure=lazy(f"{_HERE}.config:comparison_config"),
    run=lazy(f"{_HERE}.run:run"),
    plan=lazy(f"{_HERE}.plan:plan"),
    view=View(lazy(f"{_HERE}.words:headlines"), lazy(f"{_HERE}.table:tables"), lazy(f"{_HERE}.page:render_comparison")),
    reads=lazy("dualform.studies.reads:reads_of_task_study"),
    models=lazy("dualform.studies.reads:models_of"),
    seed_by_seed=SeedBySeed(
        lazy(f"{_HERE}.run:has_independent_seeds"), lazy(f"{_HERE}.run:seeds_behind"), lazy(f"{_HERE}.run:run_seed")
    ),
)
