"""Cost of comparing momentum attention with ordinary attention: tokenising, training, validation, evaluation.

A comparison trains one model from scratch for each seed and each arm. An arm is one kind of attention: `vanilla`, which
is ordinary attention without momentum, or one that is compared with it, such as momentum attention with a given eta.
Eta is the factor by which the weight of a past value shrinks with each further token, see `ops.momentum`.

Training on in-context regression is sampled like that of the laboratory (`studies.sampling`). Its operations do not
include the linear solves of exact predictors, which torch does not count.
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
from dualform.studies.momentum.pretrained import WINDOWS_A_STEP, WINDOWS_TESTED, window_tokens
from dualform.studies.momentum.regression import regress
from dualform.studies.momentum.run import STEPS_TIMED, prompts
from dualform.studies.pieces import NoPieceStore
from dualform.studies.plan import Cost, Plan, PricedPart
from dualform.studies.plan_costs import Costs, compared_with_machine
from dualform.studies.planning import PAGE, merged
from dualform.studies.sampling import (
    BUDGET,
    LinearCost,
    Run,
    cached_cost,
    cached_or_sampled_cost,
    count_operations,
    sample,
)
from dualform.tasks.sources import load_task

SAMPLES = "Training a tokenizer on the beginning of each text for the estimate."
"""Message to print before the samples."""
_SAMPLE = 1 << 19
"""Characters of a text that are tokenised for the estimate."""
_REGRESSION = "training on regression"
_REGRESSION_STEPS = 1000
"""Steps of a full training, of which a few are run."""
_STATES = 4
"""Numbers for each weight in training: the weight, its gradient and AdamW's two averages."""


@dataclass(frozen=True)
class _Text:
    """Size of a text and cost of tokenising it, estimated from a sample."""

    tokens: float
    """Tokens of the whole text."""
    seconds: float
    """Seconds to tokenise the whole text."""
    learning: float
    """Seconds to train a tokenizer on the whole text."""
    tokenizer: PreTrainedTokenizerFast
    """Tokenizer trained on the sample."""
    known: bool
    """Whether the size of the text is known; for a data set on the hub it is not."""

    def evaluation(self, length: int, most_tokens: int, micro_batch: int) -> Work:
        """Work of reading windows of the text, with at most `most_tokens` tokens in all."""
        most = max(1, most_tokens // length)
        n = min(most, max(1, int(self.tokens - 1) // length)) if self.known else most
        return Work.of(Evaluation(n, length, max(1, micro_batch)))


def samples(config: MomentumConfig, machine: Machine) -> str:
    """Message to print before a plan is made."""
    if not config.regress or cached_cost(_REGRESSION, _regression_settings(config), machine) is not None:
        return SAMPLES
    return f"{SAMPLES} Running a few steps of the training on regression, about {BUDGET:.0f} s at most."


def plan_training(
    recipe: Recipe,
    corpus: Sequence[str],
    validation: Sequence[str],
    machine: Machine,
    *,
    eta: float = 0.0,
) -> Plan:
    """Estimated cost of training one model from scratch with `momentum train`.

    Args:
        recipe: Size of the model and settings of its training.
        corpus: Text files or data set to train on.
        validation: Text for validation losses during training; empty for none.
        machine: Measured speed and memory of this machine.
        eta: Decay of momentum for each token; 0 trains without momentum.
    """
    costs = _costs(recipe, machine)
    texts = {"train": _sample_text(find_source(corpus, split="train"), recipe.vocab_size)}
    if validation:
        texts["validation"] = _sample_text(find_source(validation, split="validation"), recipe.vocab_size)
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory)), _text_part(texts)]
    parts += _training(costs, recipe, Arm("vanilla") if eta == 0 else Arm("momentum", eta), texts.get("validation"))
    memory = _memory(costs, min(recipe.micro_batch, recipe.sequences) * recipe.length)
    return _as_plan("momentum train", parts, costs, memory, tuple(_unknown_sizes(texts)))


def plan(config: MomentumConfig, machine: Machine) -> Plan:
    """Estimated cost of a comparison of all arms and seeds.

    Each arm other than `vanilla` is counted with twice the cost of attention.
    """
    recipe = config.recipe_of(config.seeds[0])
    costs = _costs(recipe, machine)
    named = {"train": config.corpus, "validation": config.validation, "test": config.test}
    texts = {name: _sample_text(find_source(where, split=name), recipe.vocab_size) for name, where in named.items()}
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory)), _text_part(texts)]
    seeds = len(config.seeds)
    evaluation_cost = _evaluation(config, recipe, costs, texts)
    for arm in config.arms:
        parts += [_times(part, seeds) for part in _training(costs, recipe, arm, texts["validation"])]
        parts.append(PricedPart("evaluation", evaluation_cost))
        if arm.baseline is not None:
            once = min(recipe.micro_batch, recipe.sequences)
            pair = Work.of(FullTraining(once, recipe.length, once)) * (2 * (STEPS_TIMED + 1))
            parts.append(PricedPart("steps timed", costs.cost(pair)))
    parts.append(PricedPart("numbers, page", Cost(seconds=PAGE * machine.start)))
    notes = _unknown_sizes(texts)
    memory = _memory(costs, min(recipe.micro_batch, recipe.sequences) * recipe.length)
    if config.regress:
        make = partial(_sampled_regression, config)
        work_cost = cached_or_sampled_cost(_REGRESSION, _regression_settings(config), machine, make)
        parts.append(PricedPart(_REGRESSION, work_cost.cost(config.regression_steps / _REGRESSION_STEPS, seeds)))
        notes.append("training on regression is estimated from a few steps")
        if not work_cost.counted:
            notes.append("its operations are not counted: counting would have taken too long")
    for name in config.pretrained:
        lm = meta_model(name)
        own_costs = Costs(lm.shape, machine, "float32")
        parts += _pretrained_parts(config, lm, own_costs)
        # Only one model is in memory at a time, so the largest one counts.
        rows = WINDOWS_A_STEP if config.pretrained_steps else 1
        memory = max(memory, _memory(own_costs, rows * (window_tokens(lm) + len(lm.opening))), key=_total)
    return _as_plan(f"momentum compare {config.recipe}", parts, costs, memory, tuple(notes))


def _unknown_sizes(texts: Mapping[str, _Text]) -> list[str]:
    return [
        f"the size of the {name} text is not known, so its tokenising is left out"
        for name, text in texts.items()
        if not text.known
    ]


def _costs(recipe: Recipe, machine: Machine) -> Costs:
    dtype = "float64" if recipe.precision == "float64" else "float32"
    return Costs(shape_of_config(recipe.config()), machine, dtype)


def _evaluation(config: MomentumConfig, recipe: Recipe, costs: Costs, texts: Mapping[str, _Text]) -> Cost:
    """Cost of evaluating the models of one arm, all seeds."""
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
                # The task is left out with a note in the result.
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
    """The training on regression as a function for `studies.sampling`."""

    def run(share: float, seeds: int) -> float:
        steps = max(1, round(share * _REGRESSION_STEPS))
        regress(config.model_copy(update={"regression_steps": steps, "seeds": config.seeds[:seeds]}), NoPieceStore())
        return steps / _REGRESSION_STEPS

    return run


def _pretrained_parts(config: MomentumConfig, lm: LanguageModel, costs: Costs) -> list[PricedPart]:
    """Cost of measuring a model that was trained without momentum."""
    own, length = window_tokens(lm), window_tokens(lm) + len(lm.opening)
    tokens, seconds = _tokens_and_seconds(lm, find_source(config.test, split="test"))
    tested = Work.of(Evaluation(max(1, min(WINDOWS_TESTED, int(tokens / own))), length, 1))
    etas = len(config.pretrained_etas)
    # Loaded once for the checks and once for the measurements.
    loads, work = 2, tested * (1 + etas)
    if config.pretrained_steps:
        runs = len(config.seeds)
        seconds += _tokens_and_seconds(lm, find_source(config.corpus))[1]
        plain, with_momentum = (FullTraining(WINDOWS_A_STEP, length, WINDOWS_A_STEP, twice) for twice in (False, True))
        work += (Work.of(plain) + Work.of(with_momentum) * etas) * (runs * config.pretrained_steps)
        work += tested * (runs * (1 + etas))
        loads += runs * (1 + etas)
    return [
        PricedPart(f"{lm.name}: loading and self-checks", costs.loading() * loads),
        PricedPart(f"{lm.name}: text into tokens", Cost(seconds=seconds)),
        PricedPart(f"{lm.name}: finetuning and perplexity", costs.cost(work)),
    ]


def _tokens_and_seconds(lm: LanguageModel, source: TextSource) -> tuple[float, float]:
    """Tokens of a text for a model's tokenizer and seconds to tokenise it, estimated from its beginning."""
    documents, whole = _beginning(source)
    tokenizer = TextTokenizer(lm.tokenizer, lm.model, lm.name)
    start = time.process_time()
    tokens = sum(len(tokenizer.encode_plain(document)) for document in documents)
    seconds = time.process_time() - start
    size = sum(map(len, documents))
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
    # For small files most of the time is waiting for the disk to confirm the write.
    parts.append(PricedPart("checkpoints", Cost(seconds=checkpoints * (3 * written + 0.05))))
    return parts


def _times(part: PricedPart, times: float) -> PricedPart:
    return PricedPart(part.name, part.cost * times)


def _sample_text(source: TextSource, vocab_size: int) -> _Text:
    """Train a tokenizer on the beginning of a text, tokenise it, and extrapolate to the whole text."""
    documents, whole = _beginning(source)
    size = sum(map(len, documents))
    threads = _tokenizer_threads()
    start = time.process_time()
    tokenizer = train_tokenizer(documents, vocab_size)
    learned = time.process_time() - start
    start = time.process_time()
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(documents, add_special_tokens=False)
    seconds = time.process_time() - start
    tokens = sum(len(encoding.ids) for encoding in encoded)
    share = (whole or size) / max(1, size)
    return _Text(tokens * share, seconds * share / threads, learned * share / threads, tokenizer, whole is not None)


def _beginning(source: TextSource) -> tuple[list[str], float | None]:
    """The beginning of a text, and the number of characters of the whole text or None."""
    documents: list[str] = []
    n = 0
    for document in source.documents():
        documents.append(document[: _SAMPLE - n])
        n += len(documents[-1])
        if n >= _SAMPLE:
            break
    return documents, _size(source, n if n < _SAMPLE else None)


def _tokenizer_threads() -> int:
    """Number of threads that tokenizers use."""
    parallelism = os.environ.get("TOKENIZERS_PARALLELISM", "true").lower()
    return 1 if parallelism in ("", "off", "false", "f", "no", "n", "0") else cores()


def _size(source: TextSource, seen: int | None) -> float | None:
    """Characters of a whole text: those read if the text has ended, else the size of its files; None if unknown."""
    if seen is not None:
        return seen
    paths = getattr(source, "paths", None)
    if not paths:
        return None
    # Text is compressed to about a third of its size.
    return float(sum(path.stat().st_size * (3 if path.suffix == ".gz" else 1) for path in paths))


def _text_part(texts: dict[str, _Text]) -> PricedPart:
    seconds = sum(text.seconds for text in texts.values()) + texts["train"].learning
    return PricedPart("text into tokens", Cost(seconds=seconds))


def _memory(costs: Costs, tokens: int) -> dict[str, int]:
    """Memory in bytes while all weights are trained on `tokens` tokens at once."""
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
