"""What training with momentum compared with vanilla costs: text, steps, validation, questions."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dualform.lab.recipe import Recipe
from dualform.lab.sources import TextSource, find_source
from dualform.lab.tokenizer import train_tokenizer
from dualform.models.cost.machine import Machine, cores
from dualform.models.cost.memory import BYTES
from dualform.models.cost.shape import shape_of_config
from dualform.models.cost.work import Evaluation, FullTraining, Work, encode
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.momentum.run import STEPS_TIMED
from dualform.studies.plan import Cost, Plan, PricedPart
from dualform.studies.plan_costs import Costs, compared_with_machine
from dualform.studies.planning import PAGE, merged
from dualform.tasks.sources import load_task

SAMPLES = "A tokenizer is being learned from the beginning of each text, for the estimate."
"""Message before it is done."""
_SAMPLE = 1 << 19
"""Characters of a text that are tokenised to see how long it takes."""
_STATES = 4
"""The weight, its gradient and AdamW's two averages."""


@dataclass(frozen=True)
class _Text:
    """A text as far as it was looked at."""

    tokens: float
    """Of all of it, estimated from the sample."""
    seconds: float
    """That it takes to write it down as tokens."""
    learning: float
    """Seconds that it takes to learn a tokenizer from it."""
    known: bool
    """Its size is; of a data set of the hub it is not."""


def samples(config: MomentumConfig, machine: Machine) -> str:
    """Message before a plan is made."""
    return SAMPLES


def plan_training(
    recipe: Recipe,
    corpus: Sequence[str],
    validation: Sequence[str],
    machine: Machine,
    *,
    eta: float = 0.0,
) -> Plan:
    """What one training from nothing will cost, as `momentum train` does it."""
    costs = _costs(recipe, machine)
    texts = {"train": _looked_at(find_source(corpus, split="train"), recipe.vocab_size)}
    if validation:
        texts["validation"] = _looked_at(find_source(validation, split="validation"), recipe.vocab_size)
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory)), _text_part(texts)]
    parts += _training(costs, recipe, Arm("vanilla") if eta == 0 else Arm("momentum", eta), bool(validation))
    notes = tuple(f"the size of the {name} text is not known, so its tokenising is left out" for name, text in
                  texts.items() if not text.known)  # fmt: skip
    return _as_plan("momentum train", parts, costs, recipe, notes)


def plan(config: MomentumConfig, machine: Machine) -> Plan:
    """What a comparison of arms will cost. Arms other than vanilla are estimated as if they attended twice."""
    recipe = config.recipe_of(config.seeds[0])
    costs = _costs(recipe, machine)
    named = {"train": config.corpus, "validation": config.validation, "test": config.test}
    texts = {name: _looked_at(find_source(where, split=name), recipe.vocab_size) for name, where in named.items()}
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory)), _text_part(texts)]
    seeds = len(config.seeds)
    for arm in config.arms:
        parts += [_times(part, seeds) for part in _training(costs, recipe, arm, True)]
        asked = Work()
        for length in config.lengths():
            most = min(config.test_tokens, int(texts["test"].tokens) if texts["test"].known else config.test_tokens)
            n = max(1, most // length)
            asked += Work.of(Evaluation(n, length, recipe.micro_batch))
        for name in config.tasks:
            task = load_task(name, data_dir=config.data_dir)
            n = len(task.split(task.report_split))
            queries = n if config.limit is None else min(n, config.limit)
            # Prompts of about an eighth of the trained length, in its own tokenizer, which is not there yet.
            asked += Work.of(Evaluation(queries, max(2, recipe.length // 8), 16)) + encode(recipe.length // 2)
        parts.append(PricedPart("questions", (costs.cost(asked) + costs.loading()) * seeds))
        if arm.baseline is not None:
            once = min(recipe.micro_batch, recipe.sequences)
            pair = Work.of(FullTraining(once, recipe.length, once)) * (2 * (STEPS_TIMED + 1))
            parts.append(PricedPart("steps timed", costs.cost(pair)))
    parts.append(PricedPart("numbers, page", Cost(seconds=PAGE * machine.start)))
    notes = [
        f"the size of the {name} text is not known, so its tokenising is left out"
        for name, text in texts.items()
        if not text.known
    ]
    if config.regress:
        notes.append("training on in-context regression is not counted")
    if config.pretrained:
        notes.append(f"what is done to {', '.join(config.pretrained)} is not counted")
    return _as_plan(f"momentum compare {config.recipe}", parts, costs, recipe, tuple(notes))


def _costs(recipe: Recipe, machine: Machine) -> Costs:
    dtype = "float64" if recipe.precision == "float64" else "float32"
    return Costs(shape_of_config(recipe.config()), machine, dtype)


def _training(costs: Costs, recipe: Recipe, arm: Arm, validated: bool) -> list[PricedPart]:
    shape, machine = costs.shape, costs.machine
    step = FullTraining(recipe.sequences, recipe.length, recipe.micro_batch, attends_twice=arm.kind != "vanilla")
    parts = [PricedPart(f"training: {arm.kind}", costs.cost(Work.of(step) * recipe.steps))]
    if validated:
        times = -(-recipe.steps // recipe.evaluate_every)
        windows = max(1, recipe.evaluate_tokens // recipe.length)
        once = Work.of(Evaluation(windows, recipe.length, recipe.micro_batch))
        parts.append(PricedPart("validation", costs.cost(once * times)))
    checkpoints = -(-recipe.steps // recipe.checkpoint_every)
    written = 3 * shape.parameters * BYTES[costs.dtype] / machine.copying
    # Small files are mostly waiting for the disk to say that it has them.
    parts.append(PricedPart("checkpoints", Cost(seconds=checkpoints * (3 * written + 0.05))))
    return parts


def _times(part: PricedPart, times: float) -> PricedPart:
    return PricedPart(part.name, part.cost * times)


def _looked_at(source: TextSource, vocab_size: int) -> _Text:
    """Learn a tokenizer from the beginning of a text, write that beginning, and estimate the rest from it."""
    some: list[str] = []
    n = 0
    for document in source.documents():
        some.append(document[: _SAMPLE - n])
        n += len(some[-1])
        if n >= _SAMPLE:
            break
    size = sum(map(len, some))
    whole = _size(source, size if n < _SAMPLE else None)
    threads = _tokenizer_threads()
    start = time.process_time()
    tokenizer = train_tokenizer(some, vocab_size)
    learned = time.process_time() - start
    start = time.process_time()
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)
    seconds = time.process_time() - start
    tokens = sum(len(one.ids) for one in encoded)
    share = (whole or size) / max(1, size)
    return _Text(tokens * share, seconds * share / threads, learned * share / threads, whole is not None)


def _tokenizer_threads() -> int:
    """Threads among which tokenizers divide their work, as they decide it."""
    told = os.environ.get("TOKENIZERS_PARALLELISM", "true").lower()
    return 1 if told in ("", "off", "false", "f", "no", "n", "0") else cores()


def _size(source: TextSource, seen: int | None) -> float | None:
    """Characters of a whole text: as many as were seen where that was all, else the size of its files."""
    if seen is not None:
        return seen
    paths = getattr(source, "paths", None)
    if not paths:
        return None
    # Compressed text is about a third of what it says.
    return float(sum(path.stat().st_size * (3 if path.suffix == ".gz" else 1) for path in paths))


def _text_part(texts: dict[str, _Text]) -> PricedPart:
    seconds = sum(text.seconds for text in texts.values()) + texts["train"].learning
    return PricedPart("text into tokens", Cost(seconds=seconds))


def _as_plan(command: str, parts: list[PricedPart], costs: Costs, recipe: Recipe, notes: tuple[str, ...]) -> Plan:
    shape, itemsize = costs.shape, BYTES[costs.dtype]
    rows = min(recipe.micro_batch, recipe.sequences) * recipe.length
    a_token = shape.n_layers * (12 * shape.d_model + 8 * shape.d_head * shape.n_heads + 4 * shape.d_inner)
    memory = {
        "Python and libraries": costs.machine.base_laboratory,
        "weights": shape.parameters * itemsize,
        "gradients and optimiser": (_STATES - 1) * shape.parameters * itemsize,
        "activations": rows * (a_token + 4 * shape.vocabulary) * itemsize,
    }
    fit = compared_with_machine(costs, memory, trains=True, divided=True)
    return Plan(command, merged(parts), memory, costs.machine, fit, notes, sampled=True)
