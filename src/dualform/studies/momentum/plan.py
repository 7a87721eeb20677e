"""What training with momentum compared with vanilla costs: text, steps, validation, questions.

Training on in-context regression is sampled as the laboratory's is (`studies.sampling`): what torch does not count in
it, the solves of exact predictors, is left out of its operations.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from dualform.errors import ContextError
from dualform.lab.evaluation import TOKENS_AT_ONCE
from dualform.lab.recipe import Recipe
from dualform.lab.sources import TextSource, find_source
from dualform.lab.tokenizer import train_tokenizer
from dualform.models.cost.machine import Machine, cores
from dualform.models.cost.memory import BYTES
from dualform.models.cost.shape import shape_of_config
from dualform.models.cost.work import Evaluation, FullTraining, Work, encode, read
from dualform.models.loading.meta import meta_model, without_weights
from dualform.models.loading.meta_device import meta_device_model
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.tokens import TextTokenizer
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.momentum.pretrained import WINDOWS_A_STEP, WINDOWS_TESTED, own_tokens
from dualform.studies.momentum.regression import regress
from dualform.studies.momentum.run import STEPS_TIMED, prompts
from dualform.studies.pieces import NoPieceStore
from dualform.studies.plan import Cost, Plan, PricedPart
from dualform.studies.plan_costs import Costs, compared_with_machine
from dualform.studies.planning import PAGE, merged
from dualform.studies.sampling import BUDGET, LinearCost, Run, count_operations, kept_line, line_of, sample
from dualform.tasks.sources import load_task

SAMPLES = "A tokenizer is being learned from the beginning of each text, for the estimate."
"""Message before it is done."""
_SAMPLE = 1 << 19
"""Characters of a text that are tokenised to see how long it takes."""
_REGRESSION = "training on regression"
_REGRESSION_STEPS = 1000
"""Of which a few are run."""
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
    tokenizer: PreTrainedTokenizerFast
    """Learned from the sample."""
    known: bool
    """Its size is; of a data set of the hub it is not."""

    def evaluation(self, length: int, most_tokens: int, micro_batch: int) -> Work:
        """Reading windows of it, as many as hold so many tokens and as there are."""
        most = max(1, most_tokens // length)
        n = min(most, max(1, int(self.tokens - 1) // length)) if self.known else most
        return Work.of(Evaluation(n, length, max(1, micro_batch)))


def samples(config: MomentumConfig, machine: Machine) -> str:
    """Message before a plan is made."""
    if not config.regress or kept_line(_REGRESSION, _regression_settings(config), machine) is not None:
        return SAMPLES
    return f"{SAMPLES} A few steps of the training on regression are being run, about {BUDGET:.0f} s at most."


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
    parts += _training(costs, recipe, Arm("vanilla") if eta == 0 else Arm("momentum", eta), texts.get("validation"))
    notes = tuple(f"the size of the {name} text is not known, so its tokenising is left out" for name, text in
                  texts.items() if not text.known)  # fmt: skip
    memory = _memory(costs, min(recipe.micro_batch, recipe.sequences) * recipe.length)
    return _as_plan("momentum train", parts, costs, memory, notes)


def plan(config: MomentumConfig, machine: Machine) -> Plan:
    """What a comparison of arms will cost. Arms other than vanilla are estimated as if they attended twice."""
    recipe = config.recipe_of(config.seeds[0])
    costs = _costs(recipe, machine)
    named = {"train": config.corpus, "validation": config.validation, "test": config.test}
    texts = {name: _looked_at(find_source(where, split=name), recipe.vocab_size) for name, where in named.items()}
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory)), _text_part(texts)]
    seeds = len(config.seeds)
    questions = _questions(config, recipe, costs, texts)
    for arm in config.arms:
        parts += [_times(part, seeds) for part in _training(costs, recipe, arm, texts["validation"])]
        parts.append(PricedPart("questions", questions))
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
    memory = _memory(costs, min(recipe.micro_batch, recipe.sequences) * recipe.length)
    if config.regress:
        make = partial(_sampled_regression, config)
        line = line_of(_REGRESSION, _regression_settings(config), machine, make)
        parts.append(PricedPart(_REGRESSION, line.cost(config.regression_steps / _REGRESSION_STEPS, seeds)))
        notes.append("training on regression is estimated from a few steps")
        if not line.counted:
            notes.append("its operations are not counted: that would have taken too long")
    for name in config.pretrained:
        lm = meta_model(name)
        own_costs = Costs(lm.shape, machine, "float32")
        parts += _put_into(config, lm, own_costs)
        # One model at a time is in memory, and the larger one decides.
        rows = WINDOWS_A_STEP if config.pretrained_steps else 1
        memory = max(memory, _memory(own_costs, rows * (own_tokens(lm) + len(lm.opening))), key=_total)
    return _as_plan(f"momentum compare {config.recipe}", parts, costs, memory, tuple(notes))


def _costs(recipe: Recipe, machine: Machine) -> Costs:
    dtype = "float64" if recipe.precision == "float64" else "float32"
    return Costs(shape_of_config(recipe.config()), machine, dtype)


def _questions(config: MomentumConfig, recipe: Recipe, costs: Costs, texts: Mapping[str, _Text]) -> Cost:
    """Cost of testing the models of one arm, all seeds."""
    work = Work()
    for length in config.lengths():
        work += texts["test"].evaluation(length, config.test_tokens, TOKENS_AT_ONCE // length)
    cost = costs.cost(work) * len(config.seeds)
    if not config.tasks:
        return cost
    model = meta_device_model(recipe.config(), torch.float32)
    lm = without_weights(model, texts["train"].tokenizer, config.recipe)
    for name in config.tasks:
        task = load_task(name, data_dir=config.data_dir)
        for seed in config.seeds:
            try:
                prefix, queries, _ = prompts(config, lm, task, seed)
            except ContextError:
                # The task is left out, and the result says so.
                continue
            cost += costs.cost(encode(len(prefix)) + read(queries, len(prefix)))
    return cost + costs.loading() * len(config.seeds)


def _regression_settings(config: MomentumConfig) -> dict[str, Any]:
    arms = [f"{arm.kind} {arm.eta}" for arm in config.arms]
    return {"arms": arms, "seeds": config.seeds}


def _sampled_regression(config: MomentumConfig) -> LinearCost:
    run = regression_run(config)
    return sample(run, count_operations(run), len(config.seeds))


def regression_run(config: MomentumConfig) -> Run:
    """The training on regression as `studies.sampling` runs it."""

    def run(share: float, seeds: int) -> float:
        steps = max(1, round(share * _REGRESSION_STEPS))
        regress(config.model_copy(update={"regression_steps": steps, "seeds": config.seeds[:seeds]}), NoPieceStore())
        return steps / _REGRESSION_STEPS

    return run


def _put_into(config: MomentumConfig, lm: LanguageModel, costs: Costs) -> list[PricedPart]:
    """What is done to a model that was trained without momentum."""
    own, length = own_tokens(lm), own_tokens(lm) + len(lm.opening)
    tokens, seconds = _written_by(lm, find_source(config.test, split="test"))
    tested = Work.of(Evaluation(max(1, min(WINDOWS_TESTED, int(tokens / own))), length, 1))
    etas = len(config.pretrained_etas)
    # Loaded to be checked, and again to be read.
    loads, work = 2, tested * (1 + etas)
    if config.pretrained_steps:
        runs = len(config.seeds)
        seconds += _written_by(lm, find_source(config.corpus))[1]
        vanilla, momentum = (FullTraining(WINDOWS_A_STEP, length, WINDOWS_A_STEP, twice) for twice in (False, True))
        work += (Work.of(vanilla) + Work.of(momentum) * etas) * (runs * config.pretrained_steps)
        work += tested * (runs * (1 + etas))
        loads += runs * (1 + etas)
    return [
        PricedPart(f"{lm.name}: loading and self-checks", costs.loading() * loads),
        PricedPart(f"{lm.name}: text into tokens", Cost(seconds=seconds)),
        PricedPart(f"{lm.name}: finetuning and perplexity", costs.cost(work)),
    ]


def _written_by(lm: LanguageModel, source: TextSource) -> tuple[float, float]:
    """Tokens of a text in a model's own tokenizer, and the seconds of writing them, estimated from its beginning."""
    some, whole = _beginning(source)
    tokenizer = TextTokenizer(lm.tokenizer, lm.model, lm.name)
    start = time.process_time()
    tokens = sum(len(tokenizer.encode_plain(document)) for document in some)
    seconds = time.process_time() - start
    size = sum(map(len, some))
    share = (whole or size) / max(1, size)
    return tokens * share, seconds * share / _tokenizer_threads()


def _training(costs: Costs, recipe: Recipe, arm: Arm, validation: _Text | None) -> list[PricedPart]:
    shape, machine = costs.shape, costs.machine
    step = FullTraining(recipe.sequences, recipe.length, recipe.micro_batch, attends_twice=arm.kind != "vanilla")
    parts = [PricedPart(f"training: {arm.kind}", costs.cost(Work.of(step) * recipe.steps))]
    if validation is not None:
        times = -(-recipe.steps // recipe.evaluate_every)
        once = validation.evaluation(recipe.length, recipe.evaluate_tokens, recipe.micro_batch)
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
    some, whole = _beginning(source)
    size = sum(map(len, some))
    threads = _tokenizer_threads()
    start = time.process_time()
    tokenizer = train_tokenizer(some, vocab_size)
    learned = time.process_time() - start
    start = time.process_time()
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)
    seconds = time.process_time() - start
    tokens = sum(len(one.ids) for one in encoded)
    share = (whole or size) / max(1, size)
    return _Text(tokens * share, seconds * share / threads, learned * share / threads, tokenizer, whole is not None)


def _beginning(source: TextSource) -> tuple[list[str], float | None]:
    """The beginning of a text, and the characters of all of it where that is known."""
    some: list[str] = []
    n = 0
    for document in source.documents():
        some.append(document[: _SAMPLE - n])
        n += len(some[-1])
        if n >= _SAMPLE:
            break
    return some, _size(source, n if n < _SAMPLE else None)


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


def _memory(costs: Costs, tokens: int) -> dict[str, int]:
    """Bytes while all weights are trained on so many tokens at once."""
    shape, itemsize = costs.shape, BYTES[costs.dtype]
    a_token = shape.n_layers * (12 * shape.d_model + 8 * shape.d_head * shape.n_heads + 4 * shape.d_inner)
    return {
        "Python and libraries": costs.machine.base_laboratory,
        "weights": shape.parameters * itemsize,
        "gradients and optimiser": (_STATES - 1) * shape.parameters * itemsize,
        "activations": tokens * (a_token + 4 * shape.vocabulary) * itemsize,
    }


def _total(memory: Mapping[str, int]) -> int:
    return sum(memory.values())


def _as_plan(
    command: str, parts: list[PricedPart], costs: Costs, memory: dict[str, int], notes: tuple[str, ...]
) -> Plan:
    fit = compared_with_machine(costs, memory, trains=True, divided=True)
    return Plan(command, merged(parts), memory, costs.machine, fit, notes, sampled=True)
