"""Momentum attention and vanilla attention: models trained from the same weights on the same text and compared.

For each seed every arm starts with the same weights and reads the same windows in the same order; only its attention
differs. Differences are therefore taken seed by seed.
"""

import contextlib
import hashlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ContextError, TrainingError
from dualform.lab.corpus import Corpus, build_corpus
from dualform.lab.evaluation import corpus_loss
from dualform.lab.pretraining import Pretrained, pretrain
from dualform.lab.recipe import Recipe
from dualform.lab.sources import find_source
from dualform.lab.windows import spread_windows
from dualform.models.editing.momentum import Momentum
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress
from dualform.source_digest import source_digest
from dualform.studies.facts import environment
from dualform.studies.momentum.arms import prepare_for
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.momentum.pretrained import put_into, require_usable
from dualform.studies.momentum.regression import regress
from dualform.studies.momentum.result import MomentumResult
from dualform.studies.momentum.summary import ArmRun, momentum_table, queries_of, summarise_momentum
from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, accepts_cells
from dualform.studies.study import StudyContext, StudyOutput
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task

_SILENT = SilentProgress()
_NO_PIECES = NoPieceStore()


@dataclass(frozen=True)
class MomentumStudy:
    """A finished study."""

    result: MomentumResult
    runs: Mapping[tuple[Arm, int], ArmRun]
    """Runs by arm and seed."""
    tasks: Mapping[str, Task]
    """Tasks on which the models were tested, by name."""


@dataclass(frozen=True)
class _Texts:
    """The texts that all runs read, as tokens."""

    train: Corpus
    validation: Corpus
    test: Corpus

    def digest(self, *more: str) -> str:
        """Digest of the texts and of further strings."""
        content = (self.train.digest, self.validation.digest, self.test.digest, *more)
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def run(config: MomentumConfig, context: StudyContext) -> StudyOutput:
    """The study as `Study.run`; its models are trained in the context's folder."""
    with contextlib.nullcontext(context.folder) if context.folder else tempfile.TemporaryDirectory() as folder:
        study = compare_momentum(config, Path(folder), pieces=context.pieces, progress=context.progress)
    return StudyOutput(study.result, momentum_table(config, study.runs, study.tasks))


@accepts_cells
@ordinary_torch()
def compare_momentum(
    config: MomentumConfig, folder: Path, *, pieces: PieceStore = _NO_PIECES, progress: Progress = _SILENT
) -> MomentumStudy:
    """Train all arms for all seeds and compare them.

    Args:
        config: Settings of the comparison.
        folder: Folder for the corpus as tokens and for each run's checkpoints; interrupted runs are resumed from them.
        pieces: Stores the numbers of each finished run.
        progress: Receives the progress.

    Returns:
        The result, with the runs and tasks behind it.

    Raises:
        DualformError: If settings, texts, tasks or models are invalid; raised before anything is trained.
    """
    start = time.perf_counter()
    tasks = {name: load_task(name, data_dir=config.data_dir) for name in config.tasks}
    for task in tasks.values():
        for seed in config.seeds:
            draw_demonstrations(task, config.k, seed, balanced=True)
    notes = [f"{name}: {note}" for name in config.pretrained for note in require_usable(config, name)]
    recipe = config.recipe_of(config.seeds[0])
    texts = read_texts(config, recipe, folder / "corpus", progress)
    # Digests cover the content of recipes and tasks, because files may change under the same name.
    trained_on = texts.digest(source_digest(), recipe.model_dump_json(exclude={"seed", "data_seed"}))
    inputs = texts.digest(trained_on, *map(_task_content, tasks.values()))
    training = folder / f"training-{trained_on[:12]}"
    # Progress is counted in steps, which regression and finetuning have too.
    progress.start(float(_steps_of(config, recipe)))
    runs: dict[tuple[Arm, int], ArmRun] = {}
    for seed in config.seeds:
        for arm in config.arms:
            name = f"{arm.name}, seed {seed}"
            piece = pieces.get(name, inputs)
            if piece is None:
                run_progress = _RunProgress(progress, name, 1 / recipe.batch_tokens)
                try:
                    trained = train_arm(config, arm, seed, texts, training, run_progress)
                except TrainingError as error:
                    # A run that diverged is a result too, and does not stop the others.
                    piece = Piece(name, inputs, {}, _diverged(config, arm, seed, str(error)))
                else:
                    piece = Piece(name, inputs, *evaluate_arm(config, trained, arm, seed, texts.test, tasks))
                pieces.put(piece)
            else:
                progress.advance(float(recipe.steps), f"{name} was already finished")
            runs[arm, seed] = ArmRun(piece.tensors, piece.about)
    ratios = {}
    for arm in config.arms:
        if arm.baseline is not None:
            name = f"{arm.name}, step"
            piece = pieces.get(name, trained_on)
            if piece is None:
                piece = Piece(name, trained_on, {}, {"ratio": step_ratio(config, arm)})
                pieces.put(piece)
            ratios[arm] = float(piece.about["ratio"])
    regression = regress(config, pieces, progress.advance) if config.regress else None
    pretrained = [record for name in config.pretrained for record in put_into(config, name, pieces, progress.advance)]
    facts = environment(_device(config), time.perf_counter() - start)
    result = summarise_momentum(config, runs, ratios, tasks, facts, inputs, regression, pretrained, notes)
    return MomentumStudy(result, runs, tasks)


def _steps_of(config: MomentumConfig, recipe: Recipe) -> int:
    """Total number of training steps."""
    n = len(config.arms) * recipe.steps + (len(config.arms) * config.regression_steps if config.regress else 0)
    tuned = len(config.pretrained) * (1 + len(config.pretrained_etas)) * config.pretrained_steps
    return len(config.seeds) * (n + tuned)


def read_texts(config: MomentumConfig, recipe: Recipe, folder: Path, progress: Progress) -> _Texts:
    """All texts as tokens, with a tokenizer that is trained on the training text.

    Raises:
        ConfigError: If a file is missing, or the test text is shorter than a window.
    """
    named = {"train": config.corpus, "validation": config.validation, "test": config.test}
    # Check that all three exist before spending hours on the first.
    sources = {name: find_source(where, split=name) for name, where in named.items()}
    train = build_corpus(sources["train"], folder, recipe.vocab_size, name="train", progress=progress)
    validation, test = (
        build_corpus(sources[name], folder, train.tokenizer, name=name, progress=progress)
        for name in ("validation", "test")
    )
    # Raises an error if the test text is too short; training checks the other texts.
    spread_windows(test.count, recipe.length, 1)
    return _Texts(train, validation, test)


def _task_content(task: Task) -> str:
    """Everything about a task that answers depend on, as text."""
    rows = [
        (example.row, example.label, example.choices, sorted(example.fields.items()))
        for example in (*task.demonstration_pool, *task.split(task.report_split))
    ]
    return repr((task.name, task.template.prompt, task.template.separator, task.label_words, rows))


def _device(config: MomentumConfig) -> torch.device:
    """Device on which arms are trained."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if config.device == "cpu" or accelerator is None else accelerator


def train_arm(
    config: MomentumConfig, arm: Arm, seed: int, texts: _Texts, folder: Path, progress: Progress
) -> Pretrained:
    """Train one arm with one seed; an interrupted run is resumed from its last checkpoint."""
    return pretrain(
        config.recipe_of(seed),
        texts.train,
        folder / f"{arm.name.replace(' ', '-')}-seed-{seed}",
        prepare=prepare_for(arm),
        validation=texts.validation,
        progress=progress,
        device=config.device,
    )


def evaluate_arm(
    config: MomentumConfig, trained: Pretrained, arm: Arm, seed: int, test: Corpus, tasks: Mapping[str, Task]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Evaluate a trained model on test text at each length and on tasks in context.

    Returns:
        Log-probabilities of each task's answers, `(example, answer)`, and the other numbers as JSON values.
    """
    model = trained.model
    about: dict[str, Any] = {
        "losses": {str(length): corpus_loss(model, test, length, config.test_tokens) for length in config.lengths()},
        "curve": [[record.tokens, record.validation] for record in trained.losses if record.validation is not None],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "learned_eta": _learned(model),
        "k": {},
        "notes": [],
    }
    tensors: dict[str, Tensor] = {}
    if tasks:
        lm = LanguageModel.wrap(model, trained.tokenizer, arm.name)
        for name, task in tasks.items():
            try:
                tensors[name], about["k"][name] = answers_in_context(config, lm, task, seed)
            except ContextError as error:
                # The rest of the message proposes remedies that do not apply here.
                reason = str(error).partition(". ")[0]
                about["notes"].append(f"{name} was left out: {reason}. Train with a larger length.")
    return tensors, about


def _diverged(config: MomentumConfig, arm: Arm, seed: int, reason: str) -> dict[str, Any]:
    """Numbers of a run that diverged, in the form of `evaluate_arm`."""
    n = sum(parameter.numel() for parameter in _build(config.recipe_of(seed), arm).parameters())
    note = f"{arm.name}, seed {seed} diverged and is left out: {reason}"
    return {"losses": {}, "curve": [], "parameters": n, "learned_eta": [], "k": {}, "notes": [note]}


def _build(recipe: Recipe, arm: Arm) -> PreTrainedModel:
    """An arm's model before training."""
    model = recipe.build()
    prepare = prepare_for(arm)
    if prepare is not None:
        prepare(model)
    return model


def answers_in_context(config: MomentumConfig, lm: LanguageModel, task: Task, seed: int) -> tuple[Tensor, int]:
    """Log-probabilities of each query's answers, `(example, answer)`, and the number of demonstrations that fit.

    Raises:
        ContextError: If a query, or a query with one demonstration, is longer than the training length.
    """
    prefix, queries, k_effective = prompts(config, lm, task, seed)
    return lm.log_probabilities(lm.encode(prefix), queries), k_effective


def prompts(
    config: MomentumConfig, lm: LanguageModel, task: Task, seed: int
) -> tuple[tuple[int, ...], list[Query], int]:
    """Demonstrations of a task as token ids, its queries, and the number of demonstrations that fit.

    Raises:
        ContextError: See `answers_in_context`.
    """
    demonstrations = draw_demonstrations(task, config.k, seed, balanced=True)
    with warnings.catch_warnings():
        # Every run would repeat the same warnings; the number of demonstrations that fit is reported in the result.
        warnings.simplefilter("ignore", UserWarning)
        encoder = Encoder(lm, task)
        queries = [encoder.query(example) for example in queries_of(config, task)]
        demonstrations = encoder.truncate_to_context(
            demonstrations, queries, config.recipe_of(seed).length, any_label=True
        )
    return encoder.demonstrations(demonstrations).prefix, queries, demonstrations.k_effective


def _learned(model: PreTrainedModel) -> list[float]:
    """Learned eta of each layer, mean over heads."""
    return [
        float(module.logit.detach().sigmoid().mean())
        for module in model.modules()
        if isinstance(module, Momentum) and hasattr(module, "logit")
    ]


STEPS_TIMED = 9


def step_ratio(config: MomentumConfig, arm: Arm) -> float:
    """Duration of an arm's forward and backward pass divided by its baseline's: median of a few alternating passes.

    Times of whole runs are not compared, because the load of the machine changes between them.
    """
    assert arm.baseline is not None
    recipe = config.recipe_of(config.seeds[0])
    device = _device(config)
    models = [_build(recipe, each).to(device).train() for each in (arm.baseline, arm)]
    shape = (min(recipe.micro_batch, recipe.sequences), recipe.length)
    rows = torch.randint(recipe.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    ratios = []
    for _ in range(STEPS_TIMED + 1):
        seconds = []
        for model in models:
            begin = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = model(input_ids=rows, labels=rows, use_cache=False).loss
            loss.backward()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            seconds.append(time.perf_counter() - begin)
            model.zero_grad(set_to_none=True)
        ratios.append(seconds[1] / seconds[0])
    # The first pass includes one-time work and is left out.
    return statistics.median(ratios[1:])


class _RunProgress:
    """Reports the progress of one run as part of the study's."""

    def __init__(self, progress: Progress, name: str, share: float) -> None:
        self._progress = progress
        self._name = name
        self._share = share

    def start(self, total: float) -> None:
        """Do nothing: the study has already started."""

    def advance(self, amount: float, doing: str) -> None:
        """Report progress with the run's name in front."""
        self._progress.advance(amount * self._share, f"{self._name}: {doing}")
