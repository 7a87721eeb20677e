"""Which exact predictor is a trained transformer nearest to, by depth and width, and which ridge where y is noisy?

A transformer trained on in-context regression predicts y at each point, as do nearest neighbours, gradient descent,
ridge and least squares. Two distances compare them: SPD is the mean squared difference between predictions, and ILWD
that between the weights which the predictions imply.

Source:
    arXiv:2211.15661, section 4. Its transformers are wider and trained for longer in more dimensions; the questions and
    the two distances are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dualform.lab.decoder import Decoders
from dualform.lab.regression_tasks import Sequences
from dualform.ops.streams import stream
from dualform.studies.laboratory.causal_transformers import (
    LARGEST_DIMENSION,
    LARGEST_POINTS,
    TransformerShape,
    distance,
    layers_in_words,
    notes_on_size,
    predictions,
    tasks_of,
    trained,
)
from dualform.studies.laboratory.claims import geometric, holds_below, holds_within, mean, ratios
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.phases_compared import NOISY, SHAPES, WIDTHS, PhaseComparison, compare, widest
from dualform.studies.laboratory.phases_view import phases_charts, phases_tables
from dualform.studies.laboratory.result import Claim, LabStudy
from dualform.studies.laboratory.ridge_strength import RidgeProfile, best_strength, ridge_profile
from dualform.studies.pieces import PieceStore
from dualform.studies.seed_statistics import over_seeds

STEPS = 1500
NOISY_STEPS = 3000
"""Noisy sequences carry less information each, and the question is finer: the strength of one kind of predictor."""
STRENGTH_SEQUENCES = 4096
"""Number of sequences, drawn for each seed, on which the best strength of ridge is measured; more if they are small."""
AKYUREK = "arXiv:2211.15661"
WITHIN = 2.0
"""In every seed the strength of the nearest ridge must be within this factor of sigma^2 / tau^2."""
MEASURED_WITHIN = 1.1
"""In every seed the measured best strength of ridge must be within this factor of sigma^2 / tau^2. It varies by 1.5 %
between draws of `STRENGTH_SEQUENCES` sequences of 10 examples."""
_NOISE_LEFT_OUT = (
    "Noise 0.25 was tried at the default sizes and is not part of the claims: the ridge nearest to a transformer was "
    "about twice as strong as sigma^2 / tau^2, because the error of so small a transformer is as large as the noise."
)


def pieces(config: RegressionConfig) -> int:
    """Number of trainings: one for each shape, all seeds at once."""
    return len(SHAPES) + len(NOISY)


def phases(config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None]) -> LabStudy:
    """Train transformers of each depth and width and compare their predictions with those of exact predictors.

    Args:
        config: Settings of the laboratory; dimension and points are reduced to what is learned in a minute.
        store: Stores each finished training.
        advance: Called with 1 after each training.
    """
    noiseless: list[PhaseComparison] = []
    noisy: list[PhaseComparison] = []
    models: dict[TransformerShape, Decoders] = {}
    for shape in (*SHAPES, *NOISY):
        tasks = tasks_of(config, shape.noise)
        models[shape] = trained(config, store, shape, tasks, NOISY_STEPS if shape.noise else STEPS)
        (noisy if shape.noise else noiseless).append(compare(models[shape], shape, tasks))
        advance(1.0, shape.name)
    profiles = {
        comparison.shape: ridge_profile(comparison.own, comparison.sequences, comparison.tasks)
        for comparison in (*noiseless, *noisy)
    }
    return LabStudy(
        name="phases",
        question="Which exact predictor is a trained transformer nearest to, and which ridge where y is noisy?",
        answer=_answer(noiseless, noisy, profiles),
        claims=[
            *_exact_claims(config, noisy),
            *_depth_claims(noiseless, profiles),
            *_noise_claims(config, noisy, models, profiles),
        ],
        charts=phases_charts(noiseless, noisy, profiles),
        tables=phases_tables(noiseless, noisy, models, profiles),
        notes=[*notes_on_size(config), _NOISE_LEFT_OUT],
    )


def _exact_claims(config: RegressionConfig, noisy: Sequence[PhaseComparison]) -> list[Claim]:
    """Claims about the measured strength at which ridge has the least error; they need no training."""
    claims = []
    for comparison in noisy:
        # Shorter sequences with fewer dimensions carry less information, and more of them take the same time.
        size = comparison.tasks.dimension * (comparison.tasks.points - 1)
        n = round(STRENGTH_SEQUENCES * max(1.0, LARGEST_DIMENSION * LARGEST_POINTS / size))
        for times in (1.0, 2.0) if comparison is noisy[-1] else (1.0,):
            tasks = replace(comparison.tasks, weight_scale=times * comparison.tasks.weight_deviation)
            relative = []
            for seed in config.seeds:
                sequences = tasks.draw(n, stream("strength", seed), torch.float64)
                relative.append(best_strength(sequences, comparison.theory) / comparison.theory)
            wrong = "" if times == 1 else f", with weights {times:g} times as large as tau"
            claims.append(
                Claim(
                    says="Ridge has the least error at lambda = sigma^2 / tau^2, noise "
                    f"{comparison.shape.noise:g}{wrong}.",
                    expected=f"best lambda divided by sigma^2 / tau^2, measured on {n:,} sequences of "
                    f"each seed, within a factor of {MEASURED_WITHIN:g} of 1 in every seed",
                    found=geometric(relative),
                    holds=holds_within(relative, MEASURED_WITHIN, must_fail=times != 1),
                    must_fail=times != 1,
                    source=f"{AKYUREK}, section 4",
                )
            )
    return claims


def _weaker_claim(deep: RidgeProfile, shallow: RidgeProfile, names: Sequence[str]) -> Claim:
    """Strengths at an end of the grid are only bounds; a bound in the claim's favour is no evidence for it."""
    undecided = deep.at_least or shallow.at_most
    weaker = geometric([] if undecided else ratios(deep.nearest, shallow.nearest))
    bound = (
        "; an end of the grid was reached, so the measured value is a bound" if deep.at_most or shallow.at_least else ""
    )
    if undecided:
        bound = "; an end of the grid was reached, so no conclusion can be drawn"
    return Claim(
        says=f"The ridge nearest to a transformer of {names[1]} is weaker than that nearest to one of {names[0]}.",
        expected=f"ratio of nearest lambdas, deep / shallow: whole interval below 1{bound}",
        found=weaker,
        holds=holds_below(weaker, 1.0),
        source=f"{AKYUREK}, section 4",
    )


def _depth_claims(noiseless: Sequence[PhaseComparison], profiles: dict[TransformerShape, RidgeProfile]) -> list[Claim]:
    shallow, *_, deep = widest(noiseless)
    names = [layers_in_words(comparison.shape.layers) for comparison in (shallow, deep)]
    nearer = over_seeds(ratios(deep.spd("least squares"), shallow.spd("least squares")))
    claims = [
        Claim(
            says=f"A transformer of {names[1]} is nearer to least squares than one of {names[0]}.",
            expected="ratio of SPD to least squares, deep / shallow: whole interval below 1",
            found=nearer,
            holds=holds_below(nearer, 1.0),
            source=f"{AKYUREK}, section 4",
        ),
        _weaker_claim(profiles[deep.shape], profiles[shallow.shape], names),
    ]
    for comparison, name in zip((shallow, deep), names, strict=True):
        ratio = over_seeds(ratios(comparison.spd("descent, 1 step"), comparison.spd("least squares")))
        claims.append(
            Claim(
                says=f"A transformer of {name} is nearer to one step of gradient descent than to least squares.",
                expected="ratio of SPD to one step and SPD to least squares: whole interval below 1",
                found=ratio,
                holds=holds_below(ratio, 1.0, must_fail=comparison is deep),
                must_fail=comparison is deep,
                source=f"{AKYUREK}, section 4",
            )
        )
    return claims


def _noise_claims(
    config: RegressionConfig,
    noisy: Sequence[PhaseComparison],
    models: dict[TransformerShape, Decoders],
    profiles: dict[TransformerShape, RidgeProfile],
) -> list[Claim]:
    claims = []
    for comparison in noisy:
        claims.append(_strength_claim(comparison, comparison, profiles[comparison.shape]))
        claims += [
            _strength_claim(comparison, other, profiles[comparison.shape])
            for other in noisy
            if other.shape.noise != comparison.shape.noise
        ]
        claims.append(
            _bayes_claim(
                comparison,
                comparison.own,
                f"A transformer trained with noise {comparison.shape.noise:g} is nearer to Bayes than to",
            )
        )
    last = noisy[-1]
    untrained = predictions(Decoders(models[last.shape].config, config.seeds).requires_grad_(False), last.sequences)
    claims.append(_bayes_claim(last, untrained, "An untrained transformer is nearer to Bayes than to", must_fail=True))
    claims.append(_permuted_claim(last, models[last.shape]))
    return claims


def _strength_claim(comparison: PhaseComparison, expected: PhaseComparison, profile: RidgeProfile) -> Claim:
    """Whether the nearest ridge has the theoretical strength for the noise of `expected`; another noise must fail."""
    strengths = [nearest / expected.theory for nearest in profile.nearest]
    must_fail = expected.shape.noise != comparison.shape.noise
    other = f", the value for noise {expected.shape.noise:g}" if must_fail else ""
    bound = "; an end of the grid was reached, so the measured value is a bound" if profile.bound else ""
    return Claim(
        says=f"With noise {comparison.shape.noise:g} the ridge nearest to a transformer has lambda = "
        f"sigma^2 / tau^2 = {expected.theory:.3g}{other}.",
        expected=f"nearest lambda divided by this, within a factor of {WITHIN:.3g} of 1 in every seed{bound}",
        found=geometric(strengths),
        holds=holds_within(strengths, WITHIN, must_fail),
        must_fail=must_fail,
        source=f"{AKYUREK}, section 4",
    )


def _bayes_claim(comparison: PhaseComparison, own: Tensor, says: str, must_fail: bool = False) -> Claim:
    """Whether predictions are nearer to Bayes than to any predictor of another kind or to zero."""
    # Ridge is of the same kind as Bayes; its strength is tested by another claim.
    others = [exact for name, exact in comparison.exact.items() if name != "Bayes" and not name.startswith("ridge")]
    others.append(torch.zeros_like(others[0]))
    to_others = torch.stack([distance(own, exact)[:, 1:].mean(1) for exact in others])
    to_bayes = distance(own, comparison.exact["Bayes"])[:, 1:].mean(1)
    ratio = over_seeds((to_bayes / to_others.amin(0)).tolist())
    return Claim(
        says=f"{says} zero, nearest neighbours, SGD, descent and least squares.",
        expected="ratio of SPD to Bayes and the least SPD to the others: whole interval below 1",
        found=ratio,
        holds=holds_below(ratio, 1.0, must_fail),
        must_fail=must_fail,
        source=f"{AKYUREK}, section 4",
    )


def _permuted_claim(comparison: PhaseComparison, model: Decoders) -> Claim:
    """The transformer reads permuted y in context and is compared with Bayes on the true ones."""
    sequences = comparison.sequences
    order = torch.rand(sequences.y[:, :-1].shape, generator=stream("permutation", 0)).argsort(1)
    y = sequences.y.clone()
    y[:, :-1] = y[:, :-1].gather(1, order)
    own = predictions(model, Sequences(sequences.x, y, sequences.clean, sequences.w))[:, :, -1]
    to_bayes = (own - comparison.exact["Bayes"][:, -1]).square().mean(1)
    ratio = over_seeds((to_bayes / own.square().mean(1)).tolist())
    return Claim(
        says="A transformer that reads permuted targets is nearer to Bayes on the true targets than to zero.",
        expected="ratio of SPD to Bayes and SPD to zero, after all examples: whole interval below 1",
        found=ratio,
        holds=holds_below(ratio, 1.0, must_fail=True),
        must_fail=True,
        source=f"{AKYUREK}, section 4",
    )


def _answer(
    noiseless: Sequence[PhaseComparison],
    noisy: Sequence[PhaseComparison],
    profiles: dict[TransformerShape, RidgeProfile],
) -> str:
    """The main numbers in two sentences."""
    nearest = []
    for comparison in widest(noiseless):
        name, layers = comparison.nearest(), layers_in_words(comparison.shape.layers)
        spd, to_least_squares = mean(comparison.spd(name)), mean(comparison.spd("least squares"))
        nearest.append(f"{name} with {layers} (SPD {spd:.2g}; to least squares {to_least_squares:.2g})")
    strengths = []
    for comparison in noisy:
        strength = geometric(profiles[comparison.shape].nearest)
        low, high = strength.ci95
        interval = "" if low is None or high is None else f" (95% CI {low:.2g} to {high:.2g})"
        strengths.append(
            f"{profiles[comparison.shape].bound}{strength.mean:.2g}{interval} at noise {comparison.shape.noise:g}, "
            f"where sigma^2 / tau^2 is {comparison.theory:.2g}"
        )
    return (
        f"Without noise a transformer of width {max(WIDTHS)} is nearest to {_listed(nearest)}. With noise the ridge "
        f"nearest to it has lambda {_listed(strengths)}."
    )


def _listed(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
