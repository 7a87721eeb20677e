"""A causal language model trained from nothing, so that two can be compared that differ in one thing alone.

Everything that a run draws at random is drawn from the recipe's seeds and the number of the step: two runs with equal
seeds begin with the same weights and read the same text in the same order, and a run that was interrupted ends with the
weights that it would have had.
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
from dualform.lab.windows import Windows, gathered, spread_windows
from dualform.models.compat import NAME_OR_PATH, accelerate_knows_processes, forget_accelerator
from dualform.ops.streams import stream_seed
from dualform.progress import Progress, SilentProgress

LOSSES = "losses.jsonl"

Prepare = Callable[[PreTrainedModel], object]
"""Changes a model in place after its weights are drawn and before it is trained."""

_DATA_PARALLEL = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
}


@dataclass(frozen=True)
class Pretrained:
    """What a run leaves."""

    model: PreTrainedModel
    """In evaluation mode, on the device where it was trained."""
    tokenizer: PreTrainedTokenizerFast
    losses: tuple[LossRecord, ...]
    """Of every step, those before an interruption included."""
    folder: Path
    tokens: int
    """Read in all."""
    seconds: float
    """This call took."""
    step_seconds: float
    """Spent in all steps, those before an interruption included; evaluation and checkpoints left out."""

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint, which `AutoModelForCausalLM.from_pretrained` loads."""
        return self.folder / f"checkpoint-{self.losses[-1].step}"

    @property
    def median_step_seconds(self) -> float:
        """A step's usual time, which a busy moment of the machine does not move."""
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
    """Train a model, or go on where an earlier call with the same arguments was interrupted.

    On a CPU the outcome is the same bit for bit however often the run was interrupted. Under `accelerate launch` or
    `torchrun` every process takes its share of each batch. A window may hold the end of one document and the beginning
    of the next, and attention sees both.

    Args:
        recipe: What to train and how.
        corpus: What to train on.
        folder: Gets `losses.jsonl` and the two newest `checkpoint-<step>`; shared by all processes.
        prepare: Called with the model, on the CPU and in evaluation mode, once its initial weights are drawn. What it
            notes in the model's config is looked at when a run goes on, so that no model goes on that was prepared
            otherwise.
        validation: What the validation loss is taken on, by the same tokenizer.
        progress: Told of each step, in tokens.
        tracker: Told each step's numbers.
        device: `auto` is accelerate's choice: a GPU where there is one.

    Returns:
        The model and its losses.

    Raises:
        ConfigError: Corpus and recipe do not fit, the batch cannot be shared among the processes, or the folder has
            checkpoints of another run.
        StorageError: The folder cannot be written; what was written before stays.
        TrainingError: The loss or the gradient became NaN or infinite; the message names the step.
    """
    begin = time.perf_counter()
    windows = _windows(recipe, corpus, validation)
    writable_dir(folder, "Choose another folder.")
    with _processes(device) as accelerator:
        if recipe.sequences % accelerator.num_processes:
            raise ConfigError(
                f"a batch of {recipe.sequences} sequences cannot be shared equally among {accelerator.num_processes} "
                "processes. Change batch_tokens or the number of processes."
            )
        model = recipe.build(corpus.tokenizer.eos_token_id)
        if prepare is not None:
            with torch.random.fork_rng(devices=[]):
                # What it draws depends on the recipe's seed, and on nothing that the weights were drawn from.
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
    """The corpus's windows, once it is clear that all fits together."""
    if len(corpus.tokenizer) > recipe.vocab_size:
        raise ConfigError(
            f"the corpus is written in {len(corpus.tokenizer)} tokens, and the recipe's vocab_size is "
            f"{recipe.vocab_size}. Raise it, or learn a smaller tokenizer."
        )
    if corpus.count <= recipe.batch_tokens:
        raise ConfigError(
            f"the corpus of {corpus.count:,} tokens is shorter than one batch of {recipe.batch_tokens:,} and the token "
            "after it. Take more text or a smaller batch_tokens."
        )
    if validation is not None:
        if tokenizer_digest(validation.tokenizer) != tokenizer_digest(corpus.tokenizer):
            raise ConfigError("the validation text is in other tokens than the corpus. Use the corpus's tokenizer.")
        spread_windows(validation.count, recipe.length, 1)
    return Windows(corpus.count, recipe.length, recipe.data_seed)


@contextmanager
def _processes(device: Literal["auto", "cpu"]) -> Iterator[Accelerator]:
    """This process's place among those that train, and its device."""
    own, own_processes = not is_initialized(), not accelerate_knows_processes()
    try:
        # Arithmetic in bfloat16 is the recipe's to decide, not the launcher's.
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    except ValueError as error:
        raise ConfigError(f"accelerate was set up otherwise in this process: {error}") from error
    try:
        if accelerator.distributed_type not in _DATA_PARALLEL:
            raise ConfigError(
                f"{accelerator.distributed_type.value} is set up for accelerate, and models are trained here whole on "
                "each device: configure it for plain data parallelism."
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != accelerator.num_processes:
            # As happens with torchrun where there is no GPU: all would write to one folder.
            raise ConfigError(
                f"{launched} processes were launched, and accelerate counts {accelerator.num_processes}. To train on "
                "CPUs together, set ACCELERATE_USE_CPU=true or ask for device cpu."
            )
        yield accelerator
    finally:
        if own:
            # Else the next call would find this one's device, whatever it asks for. Processes stay connected.
            forget_accelerator(processes=own_processes and accelerator.num_processes == 1)


def _forked(device: torch.device) -> list[torch.device]:
    """Devices besides the CPU whose random state is put back in the end."""
    return [device] if device.type == "cuda" else []


class _Trainer:
    """The model, its optimiser and its data, in one process of perhaps several."""

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
        """Average gradients over the processes from here on; to be called once the weights are those to begin with."""
        self._shared = self.accelerator.prepare_model(self.model)

    def backward(self, number: int) -> Tensor:
        """Loss of the whole batch of a step, counted from 0; its gradients are left at the parameters."""
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
                # A sum over the share, so that pieces of unequal size weigh what they should.
                loss = self._nats(self._shared, piece) / recipe.batch_tokens
                # Gradients are averaged over the processes, and should be summed.
                (loss * n_processes).backward()
            total = total + loss.detach()
        mean: Tensor = self.accelerator.reduce(total, "sum")
        return mean

    @torch.no_grad()
    def evaluate(self, validation: Corpus) -> float:
        """Mean loss on the same windows each time, nats a token."""
        length = self.recipe.length
        starts = spread_windows(validation.count, length, max(1, self.recipe.evaluate_tokens // length))
        mine = starts[self.accelerator.process_index :: self.accelerator.num_processes]
        self.model.eval()
        nats = 0.0
        for piece in np.array_split(mine, math.ceil(len(mine) / self.recipe.micro_batch) or 1):
            if len(piece):
                nats += float(self._nats(self.model, gathered(validation.ids, piece, length)))
        return math.fsum(gather_object([nats])) / (len(starts) * length)

    def _nats(self, model: nn.Module, windows: Tensor) -> Tensor:
        """Summed loss of windows `(sequence, length + 1)`: each token is predicted from those before it."""
        windows = windows.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            logits: Tensor = model(input_ids=windows[:, :-1], use_cache=False).logits
        logits = logits.flatten(0, 1)
        targets = windows[:, 1:].flatten()
        return F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, targets, reduction="sum")


def _identity(trainer: _Trainer, prepared: bool) -> dict[str, Any]:
    """All that a run must share with a checkpoint to go on from it."""
    validation = trainer.validation
    # These say which software wrote the config, and nothing about the model.
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
    """AdamW that lets matrices decay, and neither embeddings nor vectors."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = [parameter.ndim >= 2 and id(parameter) not in embeddings for parameter in trained]
    groups = [
        {"params": [one for one, does in zip(trained, decays, strict=True) if does is decay], "weight_decay": rate}
        for decay, rate in ((True, recipe.weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.epsilon,
        fused=device.type in ("cpu", "cuda"),
    )


def _seed_dropout_(device: torch.device, seed: int, step: int, process: int) -> None:
    """Let dropout depend on these numbers alone."""
    own = stream_seed("dropout", seed, step, process)
    torch.default_generator.manual_seed(own)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(own)


def _resume_(trainer: _Trainer, folder: Path, identity: Mapping[str, Any]) -> int:
    """Put the newest checkpoint into the trainer and cut the losses to it; steps done so far."""
    accelerator = trainer.accelerator
    found = None
    if accelerator.is_main_process:
        remove_unfinished(folder)
        found = newest_checkpoint(folder, identity)
        cut_losses(folder / LOSSES, found.step if found else 0)
    step = broadcast_object_list([found.step if found else 0])[0]
    if step and not accelerator.is_main_process:
        try:
            found = read_checkpoint(folder, step, identity)
        except OSError as error:
            raise StorageError(
                f"process {accelerator.process_index} does not see checkpoint-{step} in {folder}: the folder must be "
                "shared by all processes."
            ) from error
    if found:
        restore_(trainer.model, trainer.optimiser, found)
    return int(step)


def _run_(
    trainer: _Trainer,
    folder: Path,
    identity: Mapping[str, Any],
    done: int,
    progress: Progress,
    tracker: Tracker | None,
) -> None:
    """All steps that are left."""
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
            progress.advance(recipe.batch_tokens, _described(record, recipe, statistics.median(recent)))

        fit(
            trainer.parameters,
            trainer.backward,
            recipe,
            optimiser=trainer.optimiser,
            first=done,
            remedy="Lower the learning rate, lengthen the warmup or use float32, and begin in another folder.",
            after_step=after_step,
        )
    trainer.accelerator.wait_for_everyone()


def _numbers(record: LossRecord, recipe: Recipe) -> dict[str, float]:
    """A record as a tracker takes it."""
    numbers = {
        "loss": record.loss,
        "learning_rate": record.learning_rate,
        "gradient_norm": record.gradient_norm,
        "tokens": float(record.tokens),
        "tokens_per_second": recipe.batch_tokens / record.seconds,
    }
    return numbers | ({} if record.validation is None else {"validation_loss": record.validation})


def _described(record: LossRecord, recipe: Recipe, seconds: float) -> str:
    """`step 12/512, loss 4.321, 25,000 tokens/s, 3 min left`."""
    loss = f"loss {record.loss:.3f}" + ("" if record.validation is None else f", validation {record.validation:.3f}")
    left = seconds * (recipe.steps - record.step)
    time_left = f"{left:.0f} s" if left < 90 else f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
    return f"step {record.step}/{recipe.steps}, {loss}, {recipe.batch_tokens / seconds:,.0f} tokens/s, {time_left} left"
