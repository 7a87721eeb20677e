"""Compare: one model adapted to the same demonstrations in several ways, its activations recorded and compared."""

from dualform.studies.study import SeedBySeed, lazy, study_in

STUDY = study_in(
    __name__,
    "ComparisonConfig",
    name="compare",
    noun="comparison",
    written_as="comparison",
    frame="learners_frame",
    seed_by_seed=SeedBySeed(
        possible=lazy(f"{__name__}.run:has_independent_seeds"),
        before=lazy(f"{__name__}.run:required_seeds"),
        run=lazy(f"{__name__}.run:run_seed"),
    ),
)
