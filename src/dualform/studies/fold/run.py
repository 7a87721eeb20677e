"""Fold one prompt into one model: make the fold, compare it with the prompt, write it and read it back."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor

from dualform.errors import ModelError
from dualform.learners.adapted import Adapted, AdaptedModel, answer_log_probabilities
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.cost.work import QueryPass, read
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.export.card import EXAMPLE, CardFacts, ChatFacts, MeasuredAccuracy, PromptFacts, model_card
from dualform.models.export.checkpoint import (
    adapter_applied,
    check_target,
    require_plain_weights,
    source_of,
    write_adapter,
    write_checkpoint,
)
from dualform.models.export.licence import licence_of
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.models.reading.perplexity import perplexity, text_losses
from dualform.models.reading.tokens import chat_template_notes
from dualform.ops.low_rank import low_rank
from dualform.progress import Progress, SilentProgress
from dualform.result import Result, WrittenFold
from dualform.studies.baseline_words import COLLAPSED_ABOVE
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.summary import examples_table, summarise
from dualform.studies.experiment import DemonstrationSet, Experiment, digest, query_cost
from dualform.studies.facts import TaskDescription
from dualform.studies.fold.config import FoldConfig
from dualform.studies.fold.work import VERIFIED_QUERIES, folding_parts
from dualform.studies.fold_settings import require_weights
from dualform.studies.folds import (
    FoldRecord,
    check_fold,
    make_fold,
    perplexity_passages,
    require_writable,
)
from dualform.studies.study import StudyContext, StudyOutput
from dualform.tasks.task import Example, Task

_SILENT = SilentProgress()
_TOLERANCE = 1e-5
RESULT = "result.json"
"""Name of the result's file next to the checkpoint or adapter."""


@dataclass(frozen=True)
class SavedFold:
    """A fold on disk."""

    result: Result
    """Accuracy, agreement and cost of zero-shot, ICL and the fold, as in a comparison."""
    answers: pa.Table
    """Every answer of these three learners, see `examples_table`."""
    folder: Path
    kept: float | None
    """Share of the change's squared norm that the adapter keeps; None for a checkpoint."""
    perplexity: tuple[float, float] | None
    """Perplexity on plain text before and after folding; None where it was not measured."""
    difference: float | None
    """Largest difference, nats, between log-probabilities of the model loaded from disk and the one in memory; None
    where this was not checked."""


@ordinary_torch()
def fold(
    config: FoldConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    progress: Progress = _SILENT,
) -> SavedFold:
    """Fold a prompt into a model, measure the fold and write it.

    Args:
        config: The settings.
        folder: Folder of the checkpoint or adapter, which is written completely or not at all.
        overwrite: Whether to replace an existing folder.
        lm: The model, if it is already loaded.
        task: The task, if it is already loaded.
        progress: Receives the work done.

    Raises:
        DualformError: A mistake in settings, model or data; nothing is written then.
    """
    start = time.perf_counter()
    require_weights(config.fold.method)
    task = task or config.load_task()
    lm = lm or config.load_model(config.model)
    # These checks come before minutes of work.
    check_target(lm, folder, overwrite)
    require_plain_weights(lm)
    require_writable(lm, config.fold.method, config.form == "checkpoint")
    experiment = Experiment.of(config, lm, task)
    from_files = check_fold(experiment, config.fold)
    drawn = experiment.draw(config.seeds[0])
    inputs = digest(experiment, [drawn], from_files)
    plain = None
    if config.perplexity is not None:
        plain = perplexity_passages(experiment, config.perplexity, config.perplexity_texts)
    fold_passes = sum(part.work.passes for part in folding_parts(experiment, drawn))
    progress.start(fold_passes + 3 * read(experiment.queries, 0).passes)

    def folding(share: float) -> None:
        progress.advance(share * fold_passes, "folding")

    record = make_fold(experiment, drawn, config.fold, folding)
    adapted = record.adapted
    assert isinstance(adapted, AdaptedModel)
    kept = None
    if config.form == "lora":
        adapted, kept = truncated(lm, experiment.encoder.opening, adapted, config.rank)
    learners: dict[str, Adapted] = {
        "zsl": ZeroShot(experiment.encoder.opening).adapt(lm, drawn.encoded),
        "icl": InContext().adapt(lm, drawn.encoded),
        "fold": adapted,
    }
    result, answers = _measured(experiment, drawn, learners, record, inputs, progress, start)
    losses = None
    if plain is not None:
        opening = experiment.encoder.opening
        before = perplexity(text_losses(lm, opening, plain))
        with applied(lm.model, adapted.deltas):
            losses = (before, perplexity(text_losses(lm, opening, plain)))
    card = model_card(_facts(experiment, result, adapted, losses, kept))
    progress.advance(0, "writing")
    final = result

    def check(unfinished: Path) -> None:
        nonlocal final
        difference = None
        if config.verify:
            progress.advance(0, "verifying")
            difference = verified(lm, adapted, experiment, unfinished, config)
        assert result.fold is not None
        written = WrittenFold(
            form=config.form, kept=kept, perplexity=None if losses is None else list(losses), difference=difference
        )
        final = result.model_copy(update={"fold": result.fold.model_copy(update={"written": written})})
        (unfinished / RESULT).write_text(final.to_json() + "\n", encoding="utf-8")

    if config.form == "lora":
        base = source_of(lm, config.model)[0]
        write_adapter(lm, adapted.deltas, folder, config.rank, card, base, overwrite, check)
    else:
        in_chat = experiment.encoder.form.chat
        write_checkpoint(lm, adapted.deltas, folder, card, overwrite, check, chat_template=in_chat)
    assert final.fold is not None
    assert final.fold.written is not None
    return SavedFold(final, answers, folder, kept, losses, final.fold.written.difference)


def run(config: FoldConfig, context: StudyContext) -> StudyOutput:
    """See `Study.run`. The fold is written to the context's folder; without one it is discarded."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    with contextlib.nullcontext(context.folder) if context.folder else tempfile.TemporaryDirectory() as folder:
        saved = fold(config, Path(folder) / "fold", overwrite=True, lm=lm, task=task, progress=context.progress)
    return StudyOutput(saved.result, saved.answers)


def truncated(
    lm: LanguageModel, opening: tuple[int, ...], adapted: AdaptedModel, rank: int
) -> tuple[AdaptedModel, float]:
    """The fold with its changes cut to a rank, and the share of their squared norm that remains."""
    deltas: list[WeightDelta] = []
    whole, left = 0.0, 0.0
    for change in adapted.deltas:
        if change.delta.dim() < 2:
            deltas.append(change)
            continue
        delta = change.delta if change.axis == 0 else change.delta.T
        cut = low_rank(delta.float(), min(rank, *delta.shape))
        norm = float(delta.double().square().sum())
        whole += norm
        left += norm * cut.kept if norm > 0 else 0.0
        product = cut.product.to(change.delta)
        deltas.append(replace(change, delta=(product if change.axis == 0 else product.T).contiguous()))
    with applied(lm.model, deltas):
        prefix = lm.encode(opening)
    return replace(adapted, deltas=tuple(deltas), prefix=prefix), left / whole if whole > 0 else 1.0


def _measured(
    experiment: Experiment[FoldConfig],
    drawn: DemonstrationSet,
    learners: dict[str, Adapted],
    record: FoldRecord,
    inputs: str,
    progress: Progress,
    start: float,
) -> tuple[Result, pa.Table]:
    """Measure the learners: a comparison's result, and the table of all answers."""
    seed = drawn.demonstrations.seed
    answers: dict[str, Tensor] = {}
    costs: dict[str, dict[str, float]] = {}
    for name, adapted in learners.items():
        since = time.perf_counter()

        def read(n: int, doing: str = f"reading queries: {name}") -> None:
            share = sum(query.width() for query in experiment.queries) / len(experiment.queries)
            progress.advance(n * share, doing)

        answers[name] = answer_log_probabilities(adapted, experiment.lm, experiment.queries, read)
        costs[name] = {
            "adapt_seconds": adapted.cost.seconds,
            "adapt_tokens": float(adapted.cost.tokens),
            "adapt_flops": adapted.cost.flops,
            "query_seconds": (time.perf_counter() - since) / len(experiment.queries),
            "search_seconds": 0.0,
            **query_cost(experiment, [QueryPass.after(adapted.n_prefix)]),
        }
    outcome = SeedRecord(
        seed=seed,
        rows=drawn.demonstrations.rows,
        n_tokens=len(drawn.encoded.prefix),
        log_probabilities=answers,
        measures={},
        costs=costs,
        facts={"fold": record.about()},
        inputs=inputs,
    )
    description = TaskDescription.of(experiment, ())
    result = summarise(experiment.config, experiment.lm, description, [outcome], seconds=time.perf_counter() - start)
    return result, examples_table(description, [outcome])


def _facts(
    experiment: Experiment[FoldConfig],
    result: Result,
    adapted: AdaptedModel,
    losses: tuple[float, float] | None,
    kept: float | None,
) -> CardFacts:
    config, lm = experiment.config, experiment.lm
    assert result.demonstrations is not None
    assert result.fold is not None
    names = {"zsl": "base, zero-shot", "icl": "base, prompted with the demonstrations", "fold": "folded, zero-shot"}
    measured = []
    for learner, setting in names.items():
        accuracy = result.accuracy[learner]
        low, high = accuracy.ci95
        ends = None if low is None or high is None else (low, high)
        assert accuracy.mean is not None
        measured.append(MeasuredAccuracy(setting, accuracy.mean, ends, accuracy.n))
    notes = [
        f"Folded from {result.fold.texts} unlabelled texts (source: {result.fold.source}) and "
        f"{result.fold.plain_tokens} tokens of plain text (source: {result.fold.plain_source}).",
    ]
    notes += lm.notes
    if kept is not None:
        notes.append(
            f"The adapter has rank {config.rank} and keeps {kept:.1%} of the squared norm of the weight change. "
            "If it has biases, peft cannot merge it into the base."
        )
    (seed,) = result.demonstrations.rows
    return CardFacts(
        base=config.model,
        task=config.task,
        n_demonstrations=result.demonstrations.k_effective,
        seed=int(seed),
        rows=result.demonstrations.rows[seed],
        method=config.fold.method,
        settings=config.fold.used(),
        changed=[change.parameter for change in adapted.deltas],
        form="adapter" if config.form == "lora" else "checkpoint",
        label_words=result.task.get("label_words") or (),
        measured=measured,
        agreement=result.against_icl["fold"].agreement.mean,
        chance=result.against_icl["fold"].expected,
        zero_shot_agreement=result.against_icl["zsl"].agreement.mean,
        collapsed=_collapsed(result),
        prompt=_prompt(experiment, adapted),
        chat_template=bool(chat_template_notes(lm.tokenizer)),
        perplexity=losses,
        notes=notes,
        base_is_local=Path(config.model).expanduser().exists(),
        licence=licence_of(config.model, str(getattr(lm.model.config, "model_type", ""))),
        dataset=_dataset(result),
    )


def _collapsed(result: Result) -> tuple[str, float] | None:
    """The prompted model's most frequent answer and its share, where that exceeds `COLLAPSED_ABOVE`."""
    prompted = result.predictions["icl"]
    if prompted.majority_label is None or not (prompted.majority_share or 0.0) > COLLAPSED_ABOVE:
        return None
    return prompted.majority_label, prompted.majority_share or 0.0


def _prompt(experiment: Experiment[FoldConfig], adapted: AdaptedModel) -> PromptFacts:
    """The prompt of the queries, and the folded model's answer to the card's example."""
    template, words, encoder = experiment.task.template, experiment.task.label_words, experiment.encoder
    answers, example = None, None
    if words is not None:
        query = encoder.query(Example(dict.fromkeys(template.fields, EXAMPLE), 0, 0))
        (table,) = answer_log_probabilities(adapted, experiment.lm, [query]).tolist()
        answers = dict(zip(words, query.answers, strict=True))
        example = dict(zip(words, table, strict=True))
    chat = encoder.chat
    return PromptFacts(
        template=template.prompt,
        fields=template.fields,
        opening=encoder.opening,
        opening_names=encoder.opened.tokens,
        opening_is_own=encoder.opened.note is None,
        separator=encoder.separator_text,
        answers=answers,
        tail=template.tail,
        example=example,
        plain_text=encoder.splits_special_tokens,
        chat=None if chat is None else ChatFacts(chat.system, chat.arguments, chat.answer_context),
        dtype=str(experiment.lm.model.dtype).removeprefix("torch."),
        trust_remote_code=experiment.config.trust_remote_code,
    )


def _dataset(result: Result) -> str | None:
    """`owner/name` of a task that came from the hub."""
    source = str(result.task.get("source", ""))
    return source.removeprefix("hub: ").partition(":")[0] if source.startswith("hub: ") else None


# Runs without dualform, because the written model must load without it.
_READER = """
import json
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
folder, base, tensors, dtype, arguments = sys.argv[1:6]
where = base or folder
model = AutoModelForCausalLM.from_pretrained(where, dtype=getattr(torch, dtype), **json.loads(arguments)).eval()
if base:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder).eval()
given = load_file(tensors)
differences = []
with torch.no_grad():
    for i in range(len(given) // 2):
        logits = model(input_ids=given[f"ids{i}"][None]).logits[0, -1].double()
        differences.append((logits.log_softmax(-1) - given[f"expected{i}"]).abs().max())
print(float(torch.stack(differences).max()))  # NaN if any is, which Python's own max would drop
"""


def verified(
    lm: LanguageModel, adapted: AdaptedModel, experiment: Experiment[FoldConfig], folder: Path, config: FoldConfig
) -> float:
    """Load the written model in a fresh process, without dualform, and compare the next token's log-probabilities.

    Returns:
        Largest difference over the vocabulary and the first `VERIFIED_QUERIES` queries, nats.

    Raises:
        ModelError: The model does not load, or differs by more than rounding.
    """
    queries = experiment.queries[:VERIFIED_QUERIES]
    tensors: dict[str, Tensor] = {}
    lora = config.form == "lora"
    changed = adapter_applied(lm.model, adapted.deltas, config.rank) if lora else applied(lm.model, adapted.deltas)
    with torch.no_grad(), changed:
        for i, query in enumerate(queries):
            ids = torch.tensor([*experiment.encoder.opening, *query.prompt], device=lm.device)
            logits = lm.model(input_ids=ids[None], use_cache=False).logits[0, -1].double()
            tensors |= {f"ids{i}": ids.cpu(), f"expected{i}": logits.log_softmax(-1).cpu()}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "expected.safetensors"
        save_file(tensors, path)
        base, more = source_of(lm, config.model) if lora else ("", {})
        arguments = json.dumps({**more, "trust_remote_code": config.trust_remote_code})
        dtype = str(lm.model.dtype).removeprefix("torch.")
        run = subprocess.run(
            [sys.executable, "-c", _READER, str(folder), base, str(path), dtype, arguments],
            capture_output=True,
            text=True,
        )
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"the written model does not load in a fresh process, so it was removed: {last}")
    difference = float(run.stdout.strip().splitlines()[-1])
    # Other devices and half precision round differently.
    exact = lm.model.dtype.itemsize >= 4 and lm.device.type == "cpu"
    if not difference < (_TOLERANCE if exact else 0.05):
        raise ModelError(
            f"the written model's log-probabilities differ from those in memory by {difference:.1e} nats, so it was "
            "removed. Please report this model."
        )
    return difference
