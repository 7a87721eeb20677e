"""What a comparison costs: every learner's adapting, search and reading, the measures, the controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dualform.errors import ModelError
from dualform.learners.base import LEARNERS, Context, Learner
from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import Fit, layer_bytes, quantized_bytes
from dualform.models.loading.meta import meta_model
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.studies.bench import Bench, Drawn
from dualform.studies.comparison.config import FINETUNED, ComparisonConfig
from dualform.studies.comparison.controls import Workshop
from dualform.studies.comparison.setup import set_up
from dualform.studies.controls import CONTROLS, ControlPlan
from dualform.studies.plan import Cost, Part, Plan
from dualform.studies.plan_costs import Costs, fit_for, memory_of
from dualform.studies.settings import StudyConfig
from dualform.studies.work import controlled_queries

SEARCH = "a search stops early where higher rates are worse"
"""Why the time of training is a range."""
UNSTABLE = "a search repeats other rates where the best one is not stable"
TRIED = 4
"""Queries with which a rate that is known is tried out."""
PAGE = 0.25
"""Time of writing page and tables, as a share of that of importing all libraries: both are Python at work."""


def planned_model(config: StudyConfig, name: str) -> LanguageModel:
    """The model of a study, without weights.

    Raises:
        ModelError: Only code of its own can make it, and a plan runs none, whatever the settings allow.
    """
    try:
        return meta_model(name, dtype=config.dtype)
    except ModelError as error:
        if "--trust-remote-code" not in str(error):
            raise
        raise ModelError(
            f"{name} comes with code of its own, and a plan runs none, so its cost cannot be estimated. Run the "
            "command itself on a few queries, with --limit 8, and see how long it takes."
        ) from error


def divided(config: StudyConfig) -> bool:
    """Whether the settings divide the model or store it in fewer bits."""
    return any((config.device_map, config.max_memory, config.offload_folder, config.quantize))


def priced(config: StudyConfig, lm: LanguageModel, machine: Machine) -> Costs:
    """Prices of a study's work. Nothing is packed where weights are divided or stored in fewer bits."""
    costs = Costs(lm.shape, machine, config.dtype)
    return costs if divided(config) else costs.within()


def fitted(config: StudyConfig, costs: Costs, memory: dict[str, int], *, trains: bool) -> tuple[Fit, tuple[str, ...]]:
    """How a study's memory lies in the machine's, and what must be said of it.

    `memory` is changed where the settings store weights in fewer bits, or put a part of them elsewhere.
    """
    notes: tuple[str, ...] = ()
    if costs.shape.uncounted:
        notes = (f"operations of {costs.shape.uncounted:,} parameters outside linear layers are not counted",)
    machine, quantize = costs.machine, config.quantize
    if quantize is not None:
        memory["weights"] = quantized_bytes(costs.shape, quantize, costs.dtype)
        notes += (f"Products with weights in {quantize} go at another rate than those that were measured.",)
    elif divided(config):
        room = machine.gpu or machine.ram
        rest = sum(memory.values()) - memory["weights"]
        held = max(2 * layer_bytes(costs.shape, costs.dtype), min(memory["weights"], int(0.9 * room) - rest))
        memory["weights"] = held if room else memory["weights"]
        notes += ("Weights that do not stay on the device are brought over in every forward: that time is left out.",)
    return fit_for(costs, memory, trains=trains, divided=divided(config)), notes


def search_part(
    name: str, one: Cost, rates: Sequence[float], scoring: Cost, *, patience: int, known: bool, tried: Cost
) -> Part:
    """Training at a rate that is known, or a search.

    A search that stops early has tried two rates at least, and more where patience asks for more; how many is decided
    by the data, so that all are expected.

    Args:
        name: The learner's.
        one: Training once.
        rates: The grid.
        scoring: Reading the selection queries.
        patience: Of the search.
        known: No search.
        tried: Reading the few queries with which a known rate is tried out.
    """
    if known:
        return Part(name, one + tried)
    every = one + scoring
    # A rate that is the best has to come first, and then as many worse ones as patience bears.
    fewest = min(len(rates), 1 + patience)
    return Part(name, every * len(rates), every * fewest, every * len(rates), (SEARCH,) if fewest < len(rates) else ())


def around(costs: Costs, tokenising: float, summary: float = 0.0) -> list[Part]:
    """Importing, loading with its self-checks, tokenising."""
    return [
        Part("start", Cost(seconds=costs.machine.start)),
        Part("loading and self-checks", costs.loading()),
        Part("tokenising, numbers, page", Cost(seconds=tokenising + summary + PAGE * costs.machine.start)),
    ]


@dataclass(frozen=True)
class _Seed:
    """One seed's share of a comparison."""

    costs: Costs
    bench: Bench[ComparisonConfig]
    drawn: Drawn
    searching: bool
    known: frozenset[str]

    @property
    def config(self) -> ComparisonConfig:
        return self.bench.config

    @property
    def opening(self) -> int:
        return len(self.bench.encoder.opening)

    @property
    def context(self) -> Context:
        return Context(self.bench, self.drawn)

    def parts(self) -> list[Part]:
        found: list[Part] = []
        for name in self.config.learners:
            found += self._adapting(name)
        reading = Cost()
        for name in self.config.learners:
            reading += self._reading(name, self.bench.queries)
        found.append(Part("reading queries", reading))
        if self._repeats:
            found.append(self._repeating(searched=self.searching and FINETUNED not in self.known))
            found.append(Part("reading ft repeated", self._reading_again()))
        if self._inside:
            found.append(Part("measures", self._measures(self.bench.queries, self._pairs)))
        if self.config.controls and self._inside:
            found += self._controls()
        return found

    @property
    def _inside(self) -> bool:
        return self.config.compares_inside

    @property
    def _pairs(self) -> int:
        """Pairs of learners whose insides are compared: ICL and FT, and each further learner with both."""
        return 1 + 2 * sum(LEARNERS[name].compared_inside for name in self.config.learners)

    def _adapting(self, name: str) -> list[Part]:
        learner = LEARNERS[name]
        if learner.grid is None:
            return learner.plan(self.costs, self.context)
        return [self.training(learner, known=not self.searching or name in self.known)]

    def training(self, learner: Learner, *, known: bool, label: str | None = None) -> Part:
        """Training at one rate, or at each of the learner's grid."""
        cost = learner.plan_training(self.costs, self.context)
        return self._searched(label or learner.name, cost, self.config.grid_of(learner), known=known)

    def _searched(self, label: str, one: Cost, rates: Sequence[float], *, known: bool) -> Part:
        queries = self.bench.selection_queries
        return search_part(
            label,
            one,
            rates,
            self.costs.read(queries, self.opening) + self._lent(queries),
            patience=self.config.patience,
            known=known,
            tried=self.costs.read(queries[:TRIED], self.opening),
        )

    @property
    def _repeats(self) -> bool:
        return self.config.repeats_finetuning and bool(self.drawn.encoded.sequences)

    def _repeating(self, *, searched: bool, label: str = "repeating ft") -> Part:
        """Finetuning repeated from weights moved by rounding, at the rate chosen or to choose it.

        Args:
            searched: There is a search that may repeat rates to choose among them.
            label: The part's name.
        """
        costs, config, encoded = self.costs, self.config, self.drawn.encoded
        one = costs.train(encoded, config.loss_on, opening=self.opening)
        if not searched or config.rounding != "choose" or len(config.rates) == 1:
            return Part(label, one)
        scored = one + costs.read(self.bench.selection_queries, self.opening) + self._lent(self.bench.selection_queries)
        # Every rate may have to be repeated, and the one that is chosen trained once more.
        return Part(label, scored, scored, scored * len(config.rates) + one, (UNSTABLE,))

    def _reading_again(self) -> Cost:
        """The repeat reads what controls read, and is compared with ICL and with what it repeats."""
        queries = [self.bench.queries[i] for i in controlled_queries(self.bench)]
        cost = self.costs.read(queries, self.opening, self.config.probe) + self._lent(queries)
        return cost + self._measures(queries, 2, relaxed=False) if self._inside else cost

    def _lent(self, queries: Sequence[Any]) -> Cost:
        """Changes are lent anew for every group."""
        return self.costs.applied(len(self.bench.lm.groups(list(queries))))

    def _reading(self, name: str, queries: Sequence[Any]) -> Cost:
        learner, cost = LEARNERS[name], Cost()
        place = self.config.learners.index(name)
        if learner.answers_from in self.config.learners[:place]:
            # It answers from what another learner has read.
            return cost
        for some in self._groups(queries):
            cost += learner.plan_reading(self.costs, self.context, some, self.config.probe)
        return cost + (self._lent(queries) if learner.changes_weights else Cost())

    def _groups(self, queries: Sequence[Any]) -> list[list[Any]]:
        """Queries that controls read too do not mix with others."""
        if queries is not self.bench.queries:
            return [list(queries)]
        chosen = controlled_queries(self.bench)
        rest = sorted(set(range(len(queries))) - set(chosen))
        return [[queries[i] for i in some] for some in (chosen, rest) if some]

    def _measures(self, queries: Sequence[Any], pairs: int, relaxed: bool = True) -> Cost:
        cost, shown = Cost(), len(self.drawn.encoded.content)
        probe = self.config.probe
        for some in self._groups(queries):
            for group in self.bench.lm.groups(some, probe):
                widths = [some[i].width(probe) for i in group]
                cost += self.costs.measured(len(group), max(widths), shown, relaxed)
                cost += self.costs.measured(len(group), max(widths), shown, False) * (pairs - 1)
        return cost

    def _controls(self) -> list[Part]:
        """Stand-ins adapted, then read on some queries."""
        # No adapted model is needed to know what others cost.
        shop = Workshop(self.bench, self.drawn, None, None, 0.0, {})  # type: ignore[arg-type]
        costs = ControlCosts(self, shop)
        found = []
        for name in self.config.controls:
            one = CONTROLS[name].plan(costs)
            if one is not None:
                found.append(Part(f"control {name}", one.cost, one.least, why=one.why))
        return found


@dataclass(frozen=True)
class ControlCosts:
    """What the steps of making and reading a control cost, for one seed."""

    seed: _Seed
    shop: Workshop
    """Draws what other demonstrations a control is made from; it has no adapted models."""

    @property
    def bench(self) -> Bench[ComparisonConfig]:
        """Model, task and settings."""
        return self.seed.bench

    @property
    def drawn(self) -> Drawn:
        """The seed's demonstrations."""
        return self.seed.drawn

    @property
    def opening(self) -> int:
        """Tokens before every query."""
        return self.seed.opening

    @property
    def queries(self) -> list[Query]:
        """The queries that controls read."""
        return [self.bench.queries[i] for i in controlled_queries(self.bench)]

    def encode(self, tokens: int) -> Cost:
        """A prefix read once."""
        return self.seed.costs.encode(tokens)

    def read(self, prefix: int, pairs: int = 1) -> Cost:
        """The queries read behind a prefix, and their measures for so many pairs of sides."""
        return self.seed.costs.read(self.queries, prefix, self.bench.config.probe) + self.measures(pairs)

    def measures(self, pairs: int = 1) -> Cost:
        """Measures alone."""
        return self.seed._measures(self.queries, pairs, relaxed=False)

    def train(self, encoded: EncodedDemonstrations, *, layerwise: bool = False) -> Cost:
        """Training once, as FT."""
        return self.seed.costs.train(encoded, self.bench.config.loss_on, opening=self.opening, layerwise=layerwise)

    def few(self) -> Cost:
        """A few reported queries, to see whether answers are numbers."""
        return self.seed.costs.read(self.bench.queries[:TRIED], self.opening)

    def tried(self) -> Cost:
        """A few selection queries, with which a rate that is known is tried out."""
        return self.seed.costs.read(self.bench.selection_queries[:TRIED], self.opening)

    def prompted(self, prefix: int) -> ControlPlan:
        """A stand-in behind a prefix."""
        return ControlPlan(self.encode(prefix) + self.read(prefix))

    def trained(self, encoded: EncodedDemonstrations) -> ControlPlan:
        """A stand-in that is trained as FT, at FT's rate."""
        return ControlPlan(self.train(encoded) + self.tried() + self.read(self.opening))

    def searched(self, name: str, training: Cost, pairs: int = 1) -> ControlPlan:
        """A stand-in that is trained at a rate of its own."""
        config = self.bench.config
        known = not self.seed.searching and config.tune != "each"
        part = self.seed._searched(name, training, config.rates, known=known)
        after = self.read(self.opening, pairs)
        if part.least is None:
            return ControlPlan(part.cost + after)
        return ControlPlan(part.cost + after, part.least + after, part.why)

    def three_learners(self, encoded: EncodedDemonstrations) -> ControlPlan:
        """Zero-shot, ICL and FT of another model."""
        prefix = len(encoded.prefix)
        cost = self.encode(self.opening) + self.encode(prefix) + self.train(encoded) + self.tried()
        cost += self.seed.costs.read(self.queries, self.opening, self.bench.config.probe) + self.read(self.opening)
        return ControlPlan(cost + self.seed.costs.read(self.queries, prefix, self.bench.config.probe))


def _checks(config: ComparisonConfig) -> int:
    """Short forwards of `possible_arms`, before anything is computed."""
    return sum(LEARNERS[name].plan_checks(config) for name in config.learners) + sum(
        CONTROLS[name].plan_checks() for name in config.controls
    )


def plan(config: ComparisonConfig, machine: Machine) -> Plan:
    """What a comparison with these settings will cost."""
    import time

    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    bench, notes = set_up(config, lm, task)
    config = bench.config
    drawn = bench.draw_all(config.seeds)
    tokenising = time.process_time() - start
    costs = priced(config, lm, machine)
    trains = any(LEARNERS[name].grid for name in config.learners)
    parts = around(costs, tokenising, _summary_seconds(costs, bench))
    parts.append(Part("packing weights", costs.packing(trains)))
    parts.append(Part("finding out what the model allows", costs.looked_at(_checks(config))))
    parts += _seeds(costs, bench, drawn)
    longest = max(drawn.values(), key=lambda one: len(one.encoded.prefix))
    sequences = [len(ids) for one in drawn.values() for ids in one.encoded.sequences]
    learned = max((n - 1 for n in sequences), default=0)
    inside = config.compares_inside
    repeats = int(config.repeats_finetuning)
    deltas = 2 + repeats + sum(CONTROLS[name].plan_changes(config) for name in config.controls)
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=len(longest.encoded.prefix),
        queries=bench.queries,
        longest_training=max(sequences, default=0),
        learned=learned if config.loss_on == "all" else max(longest.encoded.n_answer_tokens, default=0),
        learners=len(config.learners) + (1 if config.controls or repeats else 0),
        recorded=inside,
        trains=trains,
        deltas=deltas if inside else 1 + repeats,
        more=sum(LEARNERS[name].plan_memory(costs, bench) for name in config.learners),
    )
    others = sum(CONTROLS[name].plan_models() for name in config.controls)
    if inside and others:
        # Kept until they have read.
        memory["untrained models"] = others * memory["weights"]
    fit, more = fitted(config, costs, memory, trains=trains)
    return Plan(f"compare {config.model} {task.name}", gathered(parts), memory, machine, fit, (*notes, *more))


def _seeds(costs: Costs, bench: Bench[ComparisonConfig], drawn: dict[int, Drawn]) -> list[Part]:
    config, parts = bench.config, []
    seeds = list(config.seeds)
    known: frozenset[str] = frozenset()
    weight = 1.0
    if config.select != "none" and len(seeds) > 1:
        for one in drawn.values():
            parts += _choosing(_Seed(costs, bench, one, True, frozenset()))
        known = frozenset(name for name in config.selecting if LEARNERS[name].grid)
        # Which seed will be chosen cannot be known: each has its share.
        weight = 1 / len(seeds)
    for number, seed in enumerate(seeds):
        first = number == 0 or weight < 1
        # The rate that a choice of seed has found is for the first seed alone.
        searching = first or config.tune == "each"
        for part in _Seed(costs, bench, drawn[seed], searching, known if first else frozenset()).parts():
            least, most = (None if one is None else one * weight for one in (part.least, part.most))
            parts.append(Part(part.name, part.cost * weight, least, most, part.why))
    return parts


def _choosing(seed: _Seed) -> list[Part]:
    """Finding out how good one seed is."""
    found: list[Part] = []
    for name in seed.config.selecting:
        learner, label = LEARNERS[name], f"choosing a seed: {name}"
        if learner.grid is None:
            adapting = sum((part.cost for part in learner.plan(seed.costs, seed.context)), Cost())
            queries = seed.bench.selection_queries
            reading = learner.plan_reading(seed.costs, seed.context, queries, "prompt")
            found.append(Part(label, adapting + reading))
            continue
        found.append(seed.training(learner, known=False, label=label))
        if learner.can_repeat and seed._repeats and seed.config.rounding == "choose" and len(seed.config.rates) > 1:
            found.append(seed._repeating(searched=True, label=f"choosing a seed: repeating {name}"))
    return found


def gathered(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts of one name, such as those of several seeds, as one."""
    found: dict[str, Part] = {}
    for part in parts:
        if part.name in found:
            before = found[part.name]
            least, most = (
                (getattr(before, end) or before.cost) + (getattr(part, end) or part.cost)
                if getattr(before, end) is not None or getattr(part, end) is not None
                else None
                for end in ("least", "most")
            )
            why = tuple(dict.fromkeys((*before.why, *part.why)))
            found[part.name] = Part(part.name, before.cost + part.cost, least, most, why)
        else:
            found[part.name] = part
    return tuple(found.values())


def _summary_seconds(costs: Costs, bench: Bench[ComparisonConfig]) -> float:
    """Bootstraps: every measure's queries, drawn again so many times."""
    config = bench.config
    n = len(bench.queries) * len(config.seeds)
    shown = 24 + 20 * len(config.controls)
    return config.resamples * shown * (n / costs.machine.exponentials + 4 * costs.machine.dispatch)
