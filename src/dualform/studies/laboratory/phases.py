"""Which exact predictor is a trained transformer nearest to, by depth and width, and which ridge where y is noisy?

A transformer that learned regression in context says what y is at each point; so do nearest neighbours, gradient
descent, ridge and least squares. Two predictors are as near as their predictions: SPD is the mean squared difference of
these, ILWD that of the weights which their predictions imply.

Source:
    arXiv:2211.15661, section 4. The transformers there are wider and trained for longer on more dimensions; the
    questions and the two measures are the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dualform.lab.decoder import DecoderConfig, Decoders, InContextPredictor
from dualform.lab.predictor_distance import implied_weights
from dualform.lab.predictors import (
    Bayes,
    Descent,
    LeastSquares,
    NearestNeighbours,
    OnePassSGD,
    Predictor,
    Ridge,
    by_point,
)
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.training import Training, train
from dualform.ops.streams import stream
from dualform.result import Estimate
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.result import Claim, LabChart, LabCurve, LabRow, LabStudy, LabTable
from dualform.studies.pieces import Cells, Piece
from dualform.studies.seed_statistics import over_seeds

DEPTHS = (1, 2, 4)
WIDTHS = (16, 32)
NOISES = (0.5, 1.0)
"""Standard deviations of the noise, in units of y; as many transformers of the deepest, widest shape learn with it."""
LARGEST_DIMENSION = 5
LARGEST_POINTS = 10
"""Beyond these a transformer that a core trains in a minute has not learned to regress, and nothing could be read."""

STEPS = 1500
NOISY_STEPS = 3000
"""A noisy y says less a sequence, and what is asked is finer: not which predictor, but which strength of one."""
BATCH = 32
LEARNING_RATE = 4e-3
HEADS = 2
SEQUENCES = 1024
"""On which predictors are compared, the same for all transformers; none was trained on them."""

CONTEXTS = 256
"""In which implied weights are compared."""

STRENGTH_SEQUENCES = 4096
"""On which the strength at which ridge errs least is measured, a draw of each seed's own; more where they are small."""

AKYUREK = "arXiv:2211.15661"
WITHIN = 2.0
"""The factor within which the nearest ridge must be as strong as the best, in every seed."""
MEASURED_WITHIN = 1.1
"""The factor within which the strength at which ridge errs least must be sigma^2 / tau^2, in every seed; draws of
`STRENGTH_SEQUENCES` sequences of 10 examples scatter by 1.5 %."""

_NOISE_LEFT_OUT = (
    "Noise 0.25 was looked at, at the default sizes, and is no part of the claims: the ridge nearest to a transformer "
    "was there about twice as strong as sigma^2 / tau^2, because what so small a transformer has not learned weighs as "
    "much as the noise."
)


@dataclass(frozen=True)
class Shape:
    """Of a transformer, and the noise that it learned with."""

    layers: int
    width: int
    noise: float = 0.0

    @property
    def name(self) -> str:
        """Such as `4 layers of width 32, noise 0.5`."""
        shape = f"{layers_in_words(self.layers)} of width {self.width}"
        return f"{shape}, noise {self.noise:g}" if self.noise else shape


SHAPES = tuple(Shape(layers, width) for width in WIDTHS for layers in DEPTHS)
NOISY = tuple(Shape(max(DEPTHS), max(WIDTHS), noise) for noise in NOISES)


@dataclass(frozen=True)
class _Compared:
    """A transformer's predictions beside those of exact predictors; sequences are the same for all."""

    shape: Shape
    tasks: RegressionTasks
    sequences: Sequences
    own: Tensor
    """`(seed, sequence, point)`."""
    predictors: dict[str, Predictor]
    exact: dict[str, Tensor]
    """Their predictions, each `(sequence, point)`."""

    def spd(self, name: str) -> list[float]:
        """Mean squared difference to a predictor over points with an example before them, by seed."""
        return distance(self.own, self.exact[name])[:, 1:].mean(1).tolist()

    def nearest(self, seed: int | None = None) -> str:
        """The exact predictor to which SPD is least, on average or for the seed of a number."""
        apart = {name: self.spd(name) for name in self.exact}
        return min(apart, key=lambda name: math.fsum(apart[name]) if seed is None else apart[name][seed])


def pieces(config: RegressionConfig) -> int:
    """How many trainings the study has: one of each shape, all seeds at once."""
    return len(SHAPES) + len(NOISY)


def phases(config: RegressionConfig, cells: Cells, advance: Callable[[float, str], None]) -> LabStudy:
    """Train transformers of each depth and width, and lay their predictions beside exact predictors'.

    Args:
        config: Seeds and sizes; dimension and points are cut to what is learned in a minute.
        cells: Keeps each finished training.
        advance: Told 1 as each training is done.
    """
    silent: list[_Compared] = []
    noisy: list[_Compared] = []
    models: dict[Shape, Decoders] = {}
    for shape in (*SHAPES, *NOISY):
        tasks = tasks_of(config, shape.noise)
        models[shape] = trained(config, cells, shape, tasks, NOISY_STEPS if shape.noise else STEPS)
        (noisy if shape.noise else silent).append(_compare(models[shape], shape, tasks))
        advance(1.0, shape.name)
    profiles = {one.shape: ridge_profile(one.own, one.sequences, one.tasks) for one in (*silent, *noisy)}
    return LabStudy(
        name="phases",
        question="Which exact predictor is a trained transformer nearest to, and which ridge where y is noisy?",
        answer=_answer(silent, noisy, profiles),
        claims=[
            *_exact_claims(config, noisy),
            *_depth_claims(silent, profiles),
            *_noise_claims(config, noisy, models, profiles),
        ],
        charts=[
            *(_distance_by_points(one) for one in (*_widest(silent)[:: len(DEPTHS) - 1], *noisy[-1:])),
            *(_distance_by_depth(silent, width) for width in WIDTHS),
            _profile_chart(noisy, profiles),
            _loss_chart("Loss by examples in context, no noise", _widest(silent)),
            *(_loss_chart(f"Loss by examples in context, noise {one.shape.noise:g}", [one]) for one in noisy),
        ],
        tables=[
            _distances(silent, profiles, "Distance between predictions (SPD), no noise"),
            _distances(noisy, profiles, "Distance between predictions (SPD), with noise"),
            _implied(models, silent, "Distance between implied weights (ILWD), no noise"),
            _implied(models, noisy, "Distance between implied weights (ILWD), with noise"),
        ],
        notes=[*notes_on_size(config), _NOISE_LEFT_OUT],
    )


def tasks_of(config: RegressionConfig, noise: float = 0.0) -> RegressionTasks:
    """Linear functions of normal inputs, of few enough dimensions to be learned in a minute; the last point asks."""
    return RegressionTasks(
        min(config.dimension, LARGEST_DIMENSION), min(config.points, LARGEST_POINTS) + 1, noise=noise
    )


def notes_on_size(config: RegressionConfig) -> list[str]:
    """What of the settings was cut, if anything."""
    tasks = tasks_of(config)
    given, taken = (config.dimension, config.points), (tasks.dimension, tasks.points - 1)
    if given == taken:
        return []
    return [
        f"Trained on {taken[0]} dimensions and {taken[1]} examples rather than {given[0]} and {given[1]}: small "
        "transformers learn to regress on few dimensions in minutes, on more in hours."
    ]


def trained(config: RegressionConfig, cells: Cells, shape: Shape, tasks: RegressionTasks, steps: int) -> Decoders:
    """The transformers of a shape, one for each seed: kept from before, or trained now and kept.

    Args:
        config: Seeds, and the share of the steps that is taken.
        cells: Keeps them.
        shape: Of each.
        tasks: What they learn.
        steps: Of a whole training.
    """
    decoder = DecoderConfig(tasks.dimension, shape.width, shape.layers, HEADS)
    training = Training(config.scaled(steps), BATCH, LEARNING_RATE, betas=(0.9, 0.98))
    model = Decoders(decoder, config.seeds)
    inputs = f"{decoder} {tasks} {training} {config.seeds}"
    piece = cells.get(shape.name, inputs)
    if piece is None:
        train(model, tasks, training)
        cells.put(Piece(shape.name, inputs, dict(model.state_dict()), {}))
    else:
        model.load_state_dict(piece.tensors)
    return model.eval().requires_grad_(False)


def drawn(tasks: RegressionTasks, n: int | None = None, purpose: Literal["test", "tuning"] = "test") -> Sequences:
    """`SEQUENCES` or `n` sequences that no transformer was trained on, in float64, the same in every run.

    Args:
        tasks: What they are drawn from.
        n: How many.
        purpose: What is reported on, or what an exact predictor's rate is found on.
    """
    return tasks.draw(n or SEQUENCES, stream(purpose, 0), torch.float64)


def predictions(model: Decoders, sequences: Sequences) -> Tensor:
    """Every seed's predictions at each point from the points before, `(seed, sequence, point)`, in float64."""
    seeds = len(model.seeds)
    x, y = sequences.x.float(), sequences.y.float()
    return torch.cat(
        [
            # A share at a time: attention over all sequences and seeds at once takes more memory than the rest.
            model(some.expand(seeds, -1, -1, -1), shown.expand(seeds, -1, -1)).double()
            for some, shown in zip(x.split(256), y.split(256), strict=True)
        ],
        dim=1,
    )


def distance(own: Tensor, exact: Tensor) -> Tensor:
    """SPD at each point, `(seed, point)`.

    Args:
        own: `(seed, sequence, point)`.
        exact: `(sequence, point)`.

    Source:
        arXiv:2211.15661, section 4.
    """
    return (own - exact).square().mean(1)


def best_rate(make: Callable[[float], Predictor], sequences: Sequences) -> Predictor:
    """The predictor with the rate that is best over all points of these sequences, to 5 %.

    They should not be those that its loss is then reported on: `drawn(tasks, purpose="tuning")`.
    """

    def loss(rate: float) -> float:
        error = (by_point(make(rate), sequences.x, sequences.y) - sequences.clean).square().mean()
        # A rate too large overflows; no number is worse.
        return float(error) if error.isfinite() else math.inf

    return make(min(torch.logspace(-2, 0.5, 52).tolist(), key=loss))


def layers_in_words(layers: int) -> str:
    """Such as `1 layer`."""
    return "1 layer" if layers == 1 else f"{layers} layers"


def wholly_below(found: Estimate, bound: float) -> bool:
    """Whether the interval, or the mean where there is none, lies below."""
    high = found.mean if found.ci95[1] is None else found.ci95[1]
    return high is not None and high < bound


def wholly_above(found: Estimate, bound: float) -> bool:
    """Whether the interval, or the mean where there is none, lies above."""
    low = found.mean if found.ci95[0] is None else found.ci95[0]
    return low is not None and low > bound


def holds_below(found: Estimate, bound: float, must_fail: bool = False) -> bool:
    """Whether it is below with its interval; what must fail holds unless a finite interval lies wholly above.

    Were a case that must fail to fail wherever a claim would, wide intervals would be enough for it.
    """
    return not (_has_interval(found) and wholly_above(found, bound)) if must_fail else wholly_below(found, bound)


def holds_above(found: Estimate, bound: float, must_fail: bool = False) -> bool:
    """Whether it is above with its interval; what must fail holds unless a finite interval lies wholly below."""
    return not (_has_interval(found) and wholly_below(found, bound)) if must_fail else wholly_above(found, bound)


def holds_within(ratios: Sequence[float], factor: float, must_fail: bool = False) -> bool:
    """Whether every ratio is 1 but for a factor; what must fail holds if one is, or if their interval is not outside.

    Args:
        ratios: By seed, above 0.
        factor: Above 1.
        must_fail: Whether the case is made so that the claim is false.
    """
    near = [1 / factor <= ratio <= factor for ratio in ratios]
    if not must_fail:
        return bool(near) and all(near)
    found = geometric(ratios)
    outside = wholly_below(found, 1 / factor) or wholly_above(found, factor)
    return any(near) or not (_has_interval(found) and outside)


def _has_interval(found: Estimate) -> bool:
    return all(end is not None and math.isfinite(end) for end in found.ci95)


def geometric(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval of the logarithms, and back: of strengths and ratios, which double and halve.

    Args:
        values: By seed, above 0.
    """
    logs = over_seeds([math.log(value) for value in values])
    mean, low, high = (None if one is None else math.exp(one) for one in (logs.mean, *logs.ci95))
    return Estimate(mean=mean, ci95=(low, high), n=logs.n)


@dataclass(frozen=True)
class RidgeProfile:
    """How far transformers are from ridge, by its strength."""

    strengths: list[float]
    """lambda, rising by a factor of 2^(1/4)."""
    apart: Tensor
    """SPD, `(strength, seed)`."""

    @property
    def nearest(self) -> list[float]:
        """By seed, the strength at which SPD is least; at the grid's ends a bound, as `at_most` and `at_least` say."""
        return [self.strengths[i] for i in self.apart.argmin(0).tolist()]

    @property
    def at_most(self) -> bool:
        """Whether in some seed no weaker ridge was tried than the nearest."""
        return min(self.nearest) == self.strengths[0]

    @property
    def at_least(self) -> bool:
        """Whether in some seed no stronger ridge was tried than the nearest."""
        return max(self.nearest) == self.strengths[-1]

    @property
    def bound(self) -> str:
        """What to say before the mean of `nearest`: that it is a bound, or nothing."""
        if self.at_most and self.at_least:
            return "anything, for both ends of the grid are met, about "
        return "at most " if self.at_most else "at least " if self.at_least else ""


def ridge_profile(own: Tensor, sequences: Sequences, tasks: RegressionTasks) -> RidgeProfile:
    """SPD to ridge over points with an example before them, for strengths from d / 1024 to 16 d.

    Args:
        own: Predictions, `(seed, sequence, point)`.
        sequences: What was predicted.
        tasks: What they are drawn from.
    """
    strengths = [tasks.dimension * 2 ** (step / 4) for step in range(-40, 17)]
    apart = [
        distance(own, by_point(Ridge(strength), sequences.x, sequences.y))[:, 1:].mean(1) for strength in strengths
    ]
    return RidgeProfile(strengths, torch.stack(apart))


def best_strength(sequences: Sequences, about: float) -> float:
    """The lambda at which ridge errs least on these sequences, measured: by its squared error to the clean y.

    Errors are measured over points with an example before them, from a sixteenth of `about` to four times as much, by
    factors of 2^(1/4). Through the least and its two neighbours goes a parabola in log lambda, whose lowest place is
    the strength; a least at the grid's end is given as it is, a bound.

    Args:
        sequences: Noisy y and what they are without.
        about: Where to look.
    """
    logs = [math.log(about) + step / 4 * math.log(2) for step in range(-16, 9)]

    def error(log: float) -> float:
        predicted = by_point(Ridge(math.exp(log)), sequences.x, sequences.y)
        return float((predicted - sequences.clean)[:, 1:].square().mean())

    errors = [error(log) for log in logs]
    least = min(range(len(logs)), key=errors.__getitem__)
    if least in (0, len(logs) - 1):
        return math.exp(logs[least])
    below, at, above = errors[least - 1 : least + 2]
    curvature = below - 2 * at + above
    # Errors that are all one number have no lowest place between them.
    shift = (below - above) / (2 * curvature) if curvature > 0 else 0.0
    return math.exp(logs[least] + shift * (logs[1] - logs[0]))


def _compare(model: Decoders, shape: Shape, tasks: RegressionTasks) -> _Compared:
    sequences, tuning = drawn(tasks), drawn(tasks, purpose="tuning")
    predictors: dict[str, Predictor] = {
        "3 nearest neighbours": NearestNeighbours(3),
        "one pass of SGD": best_rate(OnePassSGD, tuning),
        **{f"descent, {_steps(k)}": best_rate(partial(Descent, k), tuning) for k in DEPTHS},
        "ridge 0.1": Ridge(0.1),
        "ridge 1": Ridge(1.0),
        "least squares": LeastSquares(),
    }
    if shape.noise:
        predictors["Bayes"] = Bayes(shape.noise, tasks.weight_deviation)
    exact = {name: by_point(one, sequences.x, sequences.y) for name, one in predictors.items()}
    return _Compared(shape, tasks, sequences, predictions(model, sequences), predictors, exact)


def _steps(k: int) -> str:
    return "1 step" if k == 1 else f"{k} steps"


def _widest(silent: Sequence[_Compared]) -> list[_Compared]:
    return [one for one in silent if one.shape.width == max(WIDTHS)]


def _theory(one: _Compared) -> float:
    """sigma^2 / tau^2."""
    return one.shape.noise**2 / one.tasks.weight_deviation**2


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _number(value: float) -> Estimate:
    """A number without chance."""
    return over_seeds([value])


def _exact_claims(config: RegressionConfig, noisy: Sequence[_Compared]) -> list[Claim]:
    """What needs no training, but is measured: the strength at which ridge errs least."""
    claims = []
    for one in noisy:
        # Shorter sequences of fewer dimensions say less, and more of them are drawn in the same time.
        size = one.tasks.dimension * (one.tasks.points - 1)
        n = round(STRENGTH_SEQUENCES * max(1.0, LARGEST_DIMENSION * LARGEST_POINTS / size))
        for times in (1.0, 2.0) if one is noisy[-1] else (1.0,):
            tasks = replace(one.tasks, weight_scale=times * one.tasks.weight_deviation)
            ratios = []
            for seed in config.seeds:
                sequences = tasks.draw(n, stream("strength", seed), torch.float64)
                ratios.append(best_strength(sequences, _theory(one)) / _theory(one))
            wrong = "" if times == 1 else f", of weights {times:g} times as large as tau says"
            claims.append(
                Claim(
                    says=f"Ridge errs least at lambda = sigma^2 / tau^2, noise {one.shape.noise:g}{wrong}.",
                    expected=f"the best lambda over sigma^2 / tau^2, measured on {n:,} sequences of each seed, within "
                    f"a factor of {MEASURED_WITHIN:g} of 1 in every seed",
                    found=geometric(ratios),
                    holds=holds_within(ratios, MEASURED_WITHIN, must_fail=times != 1),
                    must_fail=times != 1,
                    source=f"{AKYUREK}, section 4",
                )
            )
    return claims


def _weaker_claim(deep: RidgeProfile, shallow: RidgeProfile, names: Sequence[str]) -> Claim:
    """Strengths at the grid's end are bounds: those on the claim's side decide nothing."""
    undecided = deep.at_least or shallow.at_most
    weaker = geometric([] if undecided else _ratios(deep.nearest, shallow.nearest))
    bound = "; the grid's end was met, and so what was found is a bound" if deep.at_most or shallow.at_least else ""
    if undecided:
        bound = "; the grid's end was met, and so nothing can be said"
    return Claim(
        says=f"The ridge nearest to a transformer of {names[1]} is weaker than that nearest to one of {names[0]}.",
        expected=f"nearest lambda, deep over shallow: below 1 with its interval{bound}",
        found=weaker,
        holds=holds_below(weaker, 1.0),
        source=f"{AKYUREK}, section 4",
    )


def _depth_claims(silent: Sequence[_Compared], profiles: dict[Shape, RidgeProfile]) -> list[Claim]:
    shallow, *_, deep = _widest(silent)
    names = [layers_in_words(one.shape.layers) for one in (shallow, deep)]
    nearer = over_seeds(_ratios(deep.spd("least squares"), shallow.spd("least squares")))
    claims = [
        Claim(
            says=f"A transformer of {names[1]} is nearer to least squares than one of {names[0]}.",
            expected="SPD to least squares, deep over shallow: below 1 with its interval",
            found=nearer,
            holds=holds_below(nearer, 1.0),
            source=f"{AKYUREK}, section 4",
        ),
        _weaker_claim(profiles[deep.shape], profiles[shallow.shape], names),
    ]
    for one, name in zip((shallow, deep), names, strict=True):
        like_descent = over_seeds(_ratios(one.spd("descent, 1 step"), one.spd("least squares")))
        claims.append(
            Claim(
                says=f"A transformer of {name} is nearer to one step of gradient descent than to least squares.",
                expected="SPD to one step over SPD to least squares: below 1 with its interval",
                found=like_descent,
                holds=holds_below(like_descent, 1.0, must_fail=one is deep),
                must_fail=one is deep,
                source=f"{AKYUREK}, section 4",
            )
        )
    return claims


def _noise_claims(
    config: RegressionConfig,
    noisy: Sequence[_Compared],
    models: dict[Shape, Decoders],
    profiles: dict[Shape, RidgeProfile],
) -> list[Claim]:
    claims = []
    for one in noisy:
        claims.append(_strength_claim(one, one, profiles[one.shape]))
        claims += [
            _strength_claim(one, other, profiles[one.shape]) for other in noisy if other.shape.noise != one.shape.noise
        ]
        claims.append(
            _bayes_claim(
                one, one.own, f"A transformer trained with noise {one.shape.noise:g} is nearer to Bayes than to"
            )
        )
    last = noisy[-1]
    untrained = predictions(Decoders(models[last.shape].config, config.seeds).requires_grad_(False), last.sequences)
    claims.append(_bayes_claim(last, untrained, "An untrained transformer is nearer to Bayes than to", must_fail=True))
    claims.append(_permuted_claim(last, models[last.shape]))
    return claims


def _strength_claim(one: _Compared, told: _Compared, profile: RidgeProfile) -> Claim:
    """Which ridge is nearest, beside what theory says for the noise of `told`; for another noise it must fail."""
    ratios = [nearest / _theory(told) for nearest in profile.nearest]
    must_fail = told.shape.noise != one.shape.noise
    whose = f", as with noise {told.shape.noise:g}" if must_fail else ""
    bound = "; the grid's end was met, and so what was found is a bound" if profile.bound else ""
    return Claim(
        says=f"With noise {one.shape.noise:g} the ridge nearest to a transformer is that of sigma^2 / tau^2 = "
        f"{_theory(told):.3g}{whose}.",
        expected=f"nearest lambda over this within a factor of {WITHIN:.3g} in every seed{bound}",
        found=geometric(ratios),
        holds=holds_within(ratios, WITHIN, must_fail),
        must_fail=must_fail,
        source=f"{AKYUREK}, section 4",
    )


def _bayes_claim(one: _Compared, own: Tensor, says: str, must_fail: bool = False) -> Claim:
    """Nearer to Bayes than to any predictor of another kind, predicting zero among them."""
    # Ridge of another strength is of the same kind: how strong is for the claim before.
    others = [exact for name, exact in one.exact.items() if name != "Bayes" and not name.startswith("ridge")]
    others.append(torch.zeros_like(others[0]))
    apart = torch.stack([distance(own, exact)[:, 1:].mean(1) for exact in others])
    ratios = distance(own, one.exact["Bayes"])[:, 1:].mean(1) / apart.amin(0)
    found = over_seeds(ratios.tolist())
    return Claim(
        says=f"{says} zero, nearest neighbours, SGD, descent and least squares.",
        expected="SPD to Bayes over the least of the others: below 1 with its interval",
        found=found,
        holds=holds_below(found, 1.0, must_fail),
        must_fail=must_fail,
        source=f"{AKYUREK}, section 4",
    )


def _permuted_claim(one: _Compared, model: Decoders) -> Claim:
    """The same transformer, its examples' y changed among themselves, beside Bayes on the true ones."""
    sequences = one.sequences
    order = torch.rand(sequences.y[:, :-1].shape, generator=stream("permutation", 0)).argsort(1)
    y = sequences.y.clone()
    y[:, :-1] = y[:, :-1].gather(1, order)
    own = predictions(model, Sequences(sequences.x, y, sequences.clean, sequences.w))[:, :, -1]
    apart = (own - one.exact["Bayes"][:, -1]).square().mean(1)
    found = over_seeds((apart / own.square().mean(1)).tolist())
    return Claim(
        says="A transformer that reads permuted labels is nearer to Bayes on the true ones than to zero.",
        expected="SPD to Bayes over SPD to zero, after all examples: below 1 with its interval",
        found=found,
        holds=holds_below(found, 1.0, must_fail=True),
        must_fail=True,
        source=f"{AKYUREK}, section 4",
    )


def _distance_by_points(one: _Compared) -> LabChart:
    return LabChart(
        title=f"Distance to each predictor by examples in context, {one.shape.name}",
        x="examples in context",
        y="SPD, in units of the mean square of y",
        log_y=True,
        curves=[
            LabCurve(
                name=name,
                x=[float(n) for n in range(1, one.own.shape[-1])],
                y=[over_seeds(point) for point in distance(one.own, exact)[:, 1:].T.tolist()],
            )
            for name, exact in one.exact.items()
        ],
        note="Rates of SGD and descent are those that predict best over all points of other sequences."
        + " Least squares peaks where there are as many examples as dimensions, if y is noisy." * bool(one.shape.noise),
    )


def _distance_by_depth(silent: Sequence[_Compared], width: int) -> LabChart:
    rows = [one for one in silent if one.shape.width == width]
    return LabChart(
        title=f"Distance to each predictor by depth, width {width}, no noise",
        x="layers",
        y="SPD, in units of the mean square of y",
        log_x=True,
        log_y=True,
        curves=[
            LabCurve(
                name=name, x=[float(one.shape.layers) for one in rows], y=[over_seeds(one.spd(name)) for one in rows]
            )
            for name in rows[0].exact
        ],
        note="Mean over points with an example before them.",
    )


def _profile_chart(noisy: Sequence[_Compared], profiles: dict[Shape, RidgeProfile]) -> LabChart:
    return LabChart(
        title="Distance to ridge by its strength, with noise",
        x="lambda over sigma^2 / tau^2",
        y="SPD, in units of the clean mean square of y",
        log_x=True,
        log_y=True,
        curves=[
            LabCurve(
                name=one.shape.name,
                x=[strength / _theory(one) for strength in profiles[one.shape].strengths],
                y=[over_seeds(at) for at in profiles[one.shape].apart.tolist()],
            )
            for one in noisy
        ],
        note="Theory says that it is least at 1.",
    )


def _loss_chart(title: str, rows: Sequence[_Compared]) -> LabChart:
    points = [float(n) for n in range(rows[0].own.shape[-1])]
    clean = rows[0].sequences.clean
    shown = [name for name in rows[0].exact if not name.startswith("ridge")]
    return LabChart(
        title=title,
        x="examples in context",
        y="squared error to the clean y, in units of its mean square",
        log_y=True,
        curves=[
            LabCurve(name=one.shape.name, x=points, y=[over_seeds(at) for at in distance(one.own, clean).T.tolist()])
            for one in rows
        ]
        + [
            LabCurve(
                name=name,
                x=points,
                # Noiseless least squares leaves rounding alone, which no logarithmic axis should show.
                y=[_number(max(at, 1e-4)) for at in (rows[0].exact[name] - clean).square().mean(0).tolist()],
                reference=True,
            )
            for name in shown
        ],
        note="Errors below 1e-4 are drawn there.",
    )


def _distances(rows: Sequence[_Compared], profiles: dict[Shape, RidgeProfile], title: str) -> LabTable:
    return LabTable(
        title=title,
        columns=[*rows[0].exact, "lambda of the nearest ridge", "SPD to it", "loss"],
        rows=[
            LabRow(
                name=one.shape.name,
                cells=[
                    *(over_seeds(one.spd(name)) for name in one.exact),
                    geometric(profiles[one.shape].nearest),
                    over_seeds(profiles[one.shape].apart.amin(0).tolist()),
                    over_seeds(distance(one.own, one.sequences.clean)[:, 1:].mean(1).tolist()),
                ],
            )
            for one in rows
        ],
        note="Means over points with an example before them; the loss is the squared error to the clean y. Lambdas are "
        f"averaged as logarithms, intervals too.{''.join(_bounds(rows, profiles))}",
    )


def _bounds(rows: Sequence[_Compared], profiles: dict[Shape, RidgeProfile]) -> list[str]:
    """A sentence for each row whose nearest ridge is at the end of the strengths that were tried."""
    return [
        f" Of {one.shape.name} lambda is {profiles[one.shape].bound.strip()} what is shown: no "
        f"{'weaker' if profiles[one.shape].at_most else 'stronger'} ridge was tried than that nearest in some seed."
        for one in rows
        if profiles[one.shape].bound
    ]


def _implied(models: dict[Shape, Decoders], rows: Sequence[_Compared], title: str) -> LabTable:
    table = []
    for one in rows:
        x, y = one.sequences.x[:CONTEXTS, :-1], one.sequences.y[:CONTEXTS, :-1]
        asked = torch.randn(len(x), 4 * x.shape[-1], x.shape[-1], generator=stream("queries", 0), dtype=x.dtype)
        own = [
            implied_weights(InContextPredictor(one.shape.name, models[one.shape].only(seed))(x, y, asked), asked)
            for seed in models[one.shape].seeds
        ]
        exact = [implied_weights(predictor(x, y, asked), asked) for predictor in one.predictors.values()]
        apart = [[float((w - v).square().sum(-1).mean()) for w in own] for v in exact]
        table.append(LabRow(name=one.shape.name, cells=[over_seeds(of) for of in apart]))
    return LabTable(
        title=title,
        columns=list(rows[0].predictors),
        rows=table,
        note="Squared distance of the weights that fit predictions best, after all examples, each from predictions at "
        f"four times as many inputs as dimensions, in {CONTEXTS} contexts.",
    )


def _answer(silent: Sequence[_Compared], noisy: Sequence[_Compared], profiles: dict[Shape, RidgeProfile]) -> str:
    """The numbers in two sentences."""
    nearest = [
        f"{one.nearest()} at {layers_in_words(one.shape.layers)} (SPD {_mean(one.spd(one.nearest())):.2g}; to least "
        f"squares {_mean(one.spd('least squares')):.2g})"
        for one in _widest(silent)
    ]
    strengths = []
    for one in noisy:
        found = geometric(profiles[one.shape].nearest)
        low, high = found.ci95
        interval = "" if low is None or high is None else f" [{low:.2g}, {high:.2g}]"
        strengths.append(
            f"{profiles[one.shape].bound}{found.mean:.2g}{interval} at noise {one.shape.noise:g}, where sigma^2 / "
            f"tau^2 is {_theory(one):.2g}"
        )
    return (
        f"Without noise a transformer of width {max(WIDTHS)} is nearest to {_listed(nearest)}. With noise the ridge "
        f"nearest to it has lambda {_listed(strengths)}."
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _listed(parts: Sequence[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
