"""Training of causal language models from scratch, so that models can be compared that differ in one respect only.

All randomness depends on the recipe's seeds and the step only: two runs with equal seeds start with the same weights
and read the same text in the same order, and an interrupted run ends with the same weights as an uninterrupted one.
"""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dualform.errors import ConfigError, StorageError
from dualform.files import writable_dir
from dualform.lab.checkpoints import newest_checkpoint, read_checkpoint, remove_unfinished, restore_, write_checkpoint
from dualform.lab.corpus import Corpus
from dualform.lab.losses import LossLog, LossRecord, cut_losses, read_losses
from dualform.lab.recipe import Recipe
from dualform.lab.tokenizer import tokenizer_digest
from dualform.lab.tracker import Tracker
from dualform.lab.training import TrainingStep, fit
from dualform.lab.windows import Windows, gather_windows, spread_windows
from dualform.models.compat import NAME_OR_PATH, accelerate_knows_processes, forget_accelerator
from dualform.ops.streams import stream_seed
from dualform.progress import Progress, SilentProgress

LOSSES = "losses.jsonl"

Prepare = Callable[[PreTrainedModel], object]
"""A function that changes a model in place after its weights are initialised and before it is trained."""

_DATA_PARALLEL = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}


@dataclass(frozen=True)
class Pretrained:
    """A trained model with the records of its training."""

    model: PreTrainedModel
    """The model in evaluation mode, on the device where it was trained."""
    tokenizer: PreTrainedTokenizerFast
    losses: tuple[LossRecord, ...]
    """Records of all steps, including those before an interruption."""
    folder: Path
    tokens: int
    """Total number of tokens read."""
    seconds: float
    """Duration of this call."""
    step_seconds: float
    """Total duration of all steps, including those before an interruption, without evaluation and checkpoints."""

    @property
    def checkpoint(self) -> Path:
        """Folder of the last checkpoint, for `AutoModelForCausalLM.from_pretrained`."""
        return self.folder / f"checkpoint-{self.losses[-1].step}"

    @property
    def median_step_seconds(self) -> float:
        """Median duration of a step."""
        return statistics.median(record.seconds for record in self.losses)

    @property
    def validation(self) -> float | None:
        """Validation loss after the last step, nats a token."""
        return self.losses[-1].validation


def pretrain(
    recipe: Recipe,
    corpus: Corpus,
    folder: Path,
    *,
    prepare: Prepare | None = None,
    validation: Corpus | None = None,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
    device: Literal["auto", "cpu"] = "auto",
) -> Pretrained:
    """Train a model, or resume an interrupted call with the same arguments.

    On a CPU the result is the same bit for bit, however often the run was interrupted. Under `accelerate launch` or
    `torchrun` each process takes its share of each batch. A window may contain the end of one document and the
    beginning of the next; attention is not masked between them.

    Args:
        recipe: Model and training settings.
        corpus: Training text.
        folder: Folder for `losses.jsonl` and the two newest `checkpoint-<step>`, shared by all processes.
        prepare: Called with the model, on the CPU and in evaluation mode, after its weights are initialised. Changes
            that it makes to the model's config are part of the run's identity, which is checked when a run is resumed.
        validation: Text for the validation loss, in the same tokens.
        progress: Receives the progress in tokens.
        tracker: Receives the numbers of each step.
        device: `auto` for the choice of accelerate (a GPU if there is one), or `cpu`.

    Raises:
        ConfigError: If corpus and recipe do not match, the batch cannot be divided among the processes, or the folder
            contains checkpoints of another run.
        StorageError: If the folder cannot be written; earlier files are then unchanged.
        TrainingError: If the loss or the gradient becomes NaN or infinite; the message names the step.
    """
    begin = time.perf_counter()
    windows = _windows(recipe, corpus, validation)
    writable_dir(folder, "Choose another folder.")
    with _processes(device) as accelerator:
        if recipe.sequences % accelerator.num_processes:
            raise ConfigError(
                f"a batch of {recipe.sequences} sequences cannot be divided equally among {accelerator.num_processes} "
                "processes. Change batch_tokens or the number of processes."
            )
        model = recipe.build(corpus.tokenizer.eos_token_id)
        if prepare is not None:
            with torch.random.fork_rng(devices=[]):
                # Its randomness depends on the recipe's seed, and not on that of the weights.
                torch.default_generator.manual_seed(stream_seed("prepare", recipe.seed))
                prepare(model.eval())
        model.to(accelerator.device)
        trainer = _Trainer(recipe, corpus, windows, model, accelerator, validation)
        identity = _identity(trainer, prepare is not None)
        done = _resume_(trainer, folder, identity)
        with torch.random.fork_rng(devices=_forked(accelerator.device)):
            _run_(trainer, folder, identity, done, progress or SilentProgress(), tracker)
        losses = read_losses(folder / LOSSES)
    model.eval()
    return Pretrained(
        model=model,
        tokenizer=corpus.tokenizer,
        losses=losses,
        folder=folder,
        tokens=recipe.steps * recipe.batch_tokens,
        seconds=time.perf_counter() - begin,
        step_seconds=sum(record.seconds for record in losses),
    )


def _windows(recipe: Recipe, corpus: Corpus, validation: Corpus | None) -> Windows:
    """The windows of the corpus, after checking that recipe and texts match."""
    if len(corpus.tokenizer) > recipe.vocab_size:
        raise ConfigError(
            f"the tokenizer of the corpus has {len(corpus.tokenizer)} tokens, but the recipe's vocab_size is "
            f"{recipe.vocab_size}. Raise vocab_size, or train a smaller tokenizer."
        )
    if corpus.count <= recipe.batch_tokens:
        raise ConfigError(
            f"the corpus of {corpus.count:,} tokens is shorter than one batch of {recipe.batch_tokens:,} tokens and "
            "the "
            "token after it. Use more text or a smaller batch_tokens."
        )
    if validation is not None:
        if tokenizer_digest(validation.tokenizer) != tokenizer_digest(corpus.tokenizer):
            raise ConfigError("the validation text has another tokenizer than the corpus. Use the corpus's tokenizer.")
        spread_windows(validation.count, recipe.length, 1)
    return Windows(corpus.count, recipe.length, recipe.data_seed)


@contextmanager
def _processes(device: Literal["auto", "cpu"]) -> Iterator[Accelerator]:
    """The accelerator of this process, with its device and its place among all processes."""
    own, own_processes = not is_initialized(), not accelerate_knows_processes()
    try:
        # The recipe decides whether to compute in bfloat16, not the launcher.
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    except ValueError as error:
        raise ConfigError(f"accelerate was configured differently in this process: {error}") from error
    try:
        if accelerator.distributed_type not in _DATA_PARALLEL:
            raise ConfigError(
                f"accelerate is configured for {accelerator.distributed_type.value}, but only plain data parallelism "
                "is "
                "supported here: configure it for that."
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != accelerator.num_processes:
            # This happens with torchrun without a GPU: all processes would write to the same folder.
            raise ConfigError(
                f"{launched} processes were launched, but accelerate counts {accelerator.num_processes}. To train on "
                "several CPUs, set ACCELERATE_USE_CPU=true or use device cpu."
            )
        yield accelerator
    finally:
        if own:
            # Otherwise the next call would get this one's device. Processes stay connected.
            forget_accelerator(processes=own_processes and accelerator.num_processes == 1)


def _forked(device: torch.device) -> list[torch.device]:
    """Devices besides the CPU whose random state is restored at the end."""
    return [device] if device.type == "cuda" else []


class _Trainer:
    """Model, optimiser and data in one of the processes."""

    def __init__(
        self,
        recipe: Recipe,
        corpus: Corpus,
        windows: Windows,
        model: PreTrainedModel,
        accelerator: Accelerator,
        validation: Corpus | None,
    ) -> None:
        self.recipe = recipe
        self.corpus = corpus
        self.windows = windows
        self.model = model
        self.accelerator = accelerator
        self.validation = validation
        self.device = accelerator.device
        self.optimiser = _optimiser(recipe, model, self.device)
        self.parameters = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        self._shared: nn.Module = model

    def share(self) -> None:
        """Average gradients over the processes from now on; call it after the initial weights are loaded."""
        self._shared = self.accelerator.prepare_model(self.model)

    def backward(self, number: int) -> Tensor:
        """Loss of the whole batch of a step, counted from 0; the gradients are stored in the parameters."""
        recipe, n_processes = self.recipe, self.accelerator.num_processes
        self.model.train()
        _seed_dropout_(self.device, recipe.seed, number, self.accelerator.process_index)
        rows = self.windows.batch(
            self.corpus.ids, number, recipe.sequences, self.accelerator.process_index, n_processes
        )
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        pieces = rows.split(recipe.micro_batch)
        total = torch.zeros((), device=self.device)
        for piece in pieces:
            with nullcontext() if piece is pieces[-1] else self.accelerator.no_sync(self._shared):
                # A sum rather than a mean, because micro-batches may differ in size.
                loss = self._nats(self._shared, piece) / recipe.batch_tokens
                # Compensates for the averaging of gradients over the processes.
                (loss * n_processes).backward()
            total = total + loss.detach()
        mean: Tensor = self.accelerator.reduce(total, "sum")
        return mean

    @torch.no_grad()
    def evaluate(self, validation: Corpus) -> float:
        """Mean loss on the same windows in each call, nats a token."""
        length = self.recipe.length
        starts = spread_windows(validation.count, length, max(1, self.recipe.evaluate_tokens // length))
        own = starts[self.accelerator.process_index :: self.accelerator.num_processes]
        self.model.eval()
        nats = 0.0
        for piece in np.array_split(own, math.ceil(len(own) / self.recipe.micro_batch) or 1):
            if len(piece):
                nats += float(self._nats(self.model, gather_windows(validation.ids, piece, length)))
        return math.fsum(gather_object([nats])) / (len(starts) * length)

    def _nats(self, model: nn.Module, windows: Tensor) -> Tensor:
        """Sum of the losses of windows `(sequence, length + 1)`; each token is predicted from those before it."""
        windows = windows.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits: Tensor = model(input_ids=windows[:, :-1], use_cache=False).logits
        logits = logits.flatten(0, 1)
        targets = windows[:, 1:].flatten()
        return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, targets, reduction="sum")


def _identity(trainer: _Trainer, prepared: bool) -> dict[str, Any]:
    """Everything that a run must have in common with a checkpoint to be resumed from it."""
    validation = trainer.validation
    # Without the fields that describe the software rather than the model.
    config = {
        name: value
        for name, value in trainer.model.config.to_dict().items()
        if name not in ("transformers_version", "architectures", NAME_OR_PATH)
    }
    return {
        "recipe": trainer.recipe.model_dump(mode="json"),
        "corpus": trainer.corpus.digest,
        "tokenizer": tokenizer_digest(trainer.corpus.tokenizer),
        "validation": None if validation is None else validation.digest,
        "prepared": prepared,
        "config": config,
    }


def _optimiser(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices, but not for embeddings and vectors."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [p for p in trained if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decaying, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.epsilon,
        fused=device.type in ("cpu", "cuda"),
    )


def _seed_dropout_(device: torch.device, seed: int, step: int, process: int) -> None:
    """Seed dropout by seed, step and process."""
    own = stream_seed("dropout", seed, step, process)
    torch.default_generator.manual_seed(own)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(own)


def _resume_(trainer: _Trainer, folder: Path, identity: Mapping[str, Any]) -> int:
    """Load the newest checkpoint, remove later losses from the log, and return the number of steps done."""
    accelerator = trainer.accelerator
    checkpoint = None
    if accelerator.is_main_process:
        remove_unfinished(folder)
        checkpoint = newest_checkpoint(folder, identity)
        cut_losses(folder / LOSSES, checkpoint.step if checkpoint else 0)
    step = broadcast_object_list([checkpoint.step if checkpoint else 0])[0]
    if step and not accelerator.is_main_process:
        try:
            checkpoint = read_checkpoint(folder, step, identity)
        except OSError as error:
            raise StorageError(
                f"process {accelerator.process_index} cannot read checkpoint-{step} in {folder}: the folder must be "
                "shared by all processes."
            ) from error
    if checkpoint:
        restore_(trainer.model, trainer.optimiser, checkpoint)
    return int(step)


def _run_(
    trainer: _Trainer,
    folder: Path,
    identity: Mapping[str, Any],
    done: int,
    progress: Progress,
    tracker: Tracker | None,
) -> None:
    """Take all remaining steps."""
    recipe, first = trainer.recipe, trainer.accelerator.is_main_process
    trainer.share()
    recent: deque[float] = deque(maxlen=20)
    if first:
        progress.start(recipe.steps * recipe.batch_tokens)
        if done:
            progress.advance(done * recipe.batch_tokens, f"step {done}/{recipe.steps}, from the checkpoint")
    with LossLog(folder / LOSSES) if first else nullcontext() as log:

        def after_step(step: TrainingStep) -> None:
            recent.append(step.seconds)
            last = step.number == recipe.steps
            validation = None
            if trainer.validation is not None and (last or step.number % recipe.evaluate_every == 0):
                validation = trainer.evaluate(trainer.validation)
            if log is None:
                return
            tokens = step.number * recipe.batch_tokens
            record = LossRecord(step.number, tokens, step.loss, step.rate, step.norms[0], step.seconds, validation)
            log.append(record)
            if tracker is not None:
                tracker.log(step.number, _numbers(record, recipe))
            if last or step.number % recipe.checkpoint_every == 0:
                log.sync()
                write_checkpoint(
                    folder, step.number, trainer.model, trainer.corpus.tokenizer, trainer.optimiser, identity
                )
            progress.advance(recipe.batch_tokens, _describe_step(record, recipe, statistics.median(recent)))

        fit(
            trainer.parameters,
            trainer.backward,
            recipe,
            optimiser=trainer.optimiser,
            first=done,
            remedy="Lower the learning rate, lengthen the warmup or use float32, and start again in another folder.",
            after_step=after_step,
        )
    trainer.accelerator.wait_for_everyone()


def _numbers(record: LossRecord, recipe: Recipe) -> dict[str, float]:
    """The numbers of a record for a tracker."""
    numbers = {
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "gradient_norm": record.gradient_norm,
        "tokens": float(record.tokens),
        "tokens_per_second": recipe.batch_tokens / record.seconds,
    }
    return numbers | ({} if record.validation is None else {"validation_loss": record.validation})


def _describe_step(record: LossRecord, recipe: Recipe, seconds: float) -> str:
    """`step 12/512, loss 4.321, 25,000 tokens/s, 3 min left`."""
    loss = f"loss {record.loss:.3f}" + ("" if record.validation is None else f", validation {record.validation:.3f}")
    left = seconds * (recipe.steps - record.step)
    time_left = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
    return f"step {record.step}/{recipe.steps}, {loss}, {recipe.batch_tokens / seconds:,.0f} tokens/s, {time_left} left"
