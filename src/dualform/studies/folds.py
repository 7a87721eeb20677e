"""Folding one seed's demonstrations: the texts that the fold reads, and the method that the settings name."""

import contextlib
import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualform.errors import ConfigError, ContextError, ModelError, TaskError
from dualform.files import atomic_write, cache_dir
from dualform.learners.adapted import AdaptationCost, Adapted, AdaptedModel, Method
from dualform.learners.base import DemonstrationSet, Setup
from dualform.learners.folded import FEWEST_TEXTS, Folded, require_layers
from dualform.learners.kv_momentum import KeyValueMomentum
from dualform.learners.mezo import Mezo
from dualform.learners.rank_one import RankOne
from dualform.learners.task_vector import PatchedModel, TaskVector
from dualform.learners.thought import Thought
from dualform.models.cost.work import Decoding, Work, encode
from dualform.models.editing.blockwise import require_editable_outputs
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.generation import generate_plain, generate_texts
from dualform.models.reading.language_model import WITHOUT_WEIGHTS, LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.structure.bias import output_bias
from dualform.studies.fold_settings import CALIBRATED, FoldMethod, FoldSettings
from dualform.tasks.task import Example
from dualform.tasks.texts import read_lines, unlabelled_texts


@dataclass(frozen=True)
class FoldTexts:
    """The texts that one seed's fold reads besides the demonstrations."""

    texts: tuple[Query, ...]
    """Calibration texts."""
    source: str
    """`train`, `generated`, the name of a file, or `none`."""
    plain: tuple[tuple[int, ...], ...]
    """Token ids of plain texts, without the opening."""
    plain_source: str
    """`generated`, the name of a file, or `none`."""


@dataclass(frozen=True)
class FoldRecord:
    """A finished fold and the facts that are reported about it."""

    adapted: Adapted
    texts: FoldTexts
    strength: float | None
    """Ridge strength, mean over layers; None for methods without one."""
    explained: tuple[float | None, ...]
    """Share of its target that each layer's map explains; empty for other methods than ridge."""

    def about(self) -> dict[str, Any]:
        """The facts that a piece stores, for `FoldReport`."""
        return {
            "texts": len(self.texts.texts),
            "source": self.texts.source,
            "plain_tokens": sum(map(len, self.texts.plain)),
            "plain_source": self.texts.plain_source,
            "strength": self.strength,
            "explained": self.explained,
        }


def make_fold(
    experiment: Setup,
    drawn: DemonstrationSet,
    settings: FoldSettings,
    report: Callable[[float], None] = lambda share: None,
) -> FoldRecord:
    """Fold one seed's demonstrations.

    Args:
        experiment: Model, task and queries.
        drawn: The demonstrations.
        settings: Settings of the fold.
        report: Called with each further share of the work that is done.

    Raises:
        DualformError: The texts or the model cannot be used.
    """
    begin = time.perf_counter()
    texts = fold_texts(experiment, drawn, settings)
    seconds = time.perf_counter() - begin
    learner = fold_learner(experiment.lm, experiment.encoder.opening, texts, settings, drawn.demonstrations.seed)
    writing_cost = cost_of_writing(experiment, drawn, texts, seconds)
    if not isinstance(learner, Folded):
        adapted = learner.adapt(experiment.lm, drawn.encoded)
        report(1.0)
        return FoldRecord(with_cost(adapted, writing_cost), texts, None, ())
    layers = len(experiment.lm.anatomy.layers)
    fold = learner.fold(experiment.lm, drawn.encoded, lambda: report(1 / layers))
    strengths = [strength for strength in fold.strengths if strength is not None]
    return FoldRecord(with_cost(fold.adapted, writing_cost), texts, sum(strengths) / len(strengths), fold.explained)


def cost_of_writing(experiment: Setup, drawn: DemonstrationSet, texts: FoldTexts, seconds: float) -> AdaptationCost:
    """The cost of texts that the model generated. Rejected texts count only in `seconds`.

    Plain text counts in full although it is generated once per model and cached, since a single fold has to pay for it.
    """
    work = Work()
    if texts.source == "generated":
        work += writing(len(drawn.encoded.prefix), [len(text.prompt) for text in texts.texts])
    if texts.plain_source == "generated":
        work += writing(len(experiment.encoder.opening), [len(text) for text in texts.plain])
    return AdaptationCost.of(work, experiment.lm.shape, seconds)


def writing(prefix: int, lengths: Sequence[int]) -> Work:
    """The work of generating texts of these lengths after a prefix, which is read once."""
    return encode(prefix).uncharged + Work.of(Decoding(tuple(lengths), prefix))


def with_cost(adapted: Adapted, more: AdaptationCost) -> Adapted:
    """The adapted model with an additional cost."""
    if not isinstance(adapted, AdaptedModel | PatchedModel):
        return adapted
    own = adapted.cost
    cost = AdaptationCost(own.seconds + more.seconds, own.tokens + more.tokens, own.flops + more.flops)
    return replace(adapted, cost=cost)


def check_fold(experiment: Setup, settings: FoldSettings) -> tuple[str, ...]:
    """Check, before any work, that a fold can be made with this model and these layers and files.

    Returns:
        The contents of the files, for `digest`.

    Raises:
        ConfigError: A layer does not exist, or a file has too few texts.
        ModelError: W_O is unknown or cannot be edited.
        TaskError: A file cannot be read.
    """
    if settings.method == "ridge":
        require_layers(experiment.lm, settings.layers)
        require_editable_outputs(experiment.lm)
    contents = [*check_calibration(experiment, settings)] if settings.method in CALIBRATED else []
    if settings.method == "ridge" and settings.plain not in ("generated", "none"):
        contents.append(repr(plain_texts(experiment, settings)))
    return tuple(contents)


def check_calibration(experiment: Setup, settings: FoldSettings) -> tuple[str, ...]:
    """Check, before any work, that a file of calibration texts can be used.

    Returns:
        The contents of the file, if there is one, for `digest`.

    Raises:
        ConfigError: The file has too few texts.
        TaskError: The file cannot be read.
    """
    if settings.calibration in ("train", "generated"):
        return ()
    path = Path(settings.calibration).expanduser()
    examples = unlabelled_texts(path, experiment.task)
    _require_enough(path, len(examples))
    return (repr([sorted(example.fields.items()) for example in examples]),)


def fold_learner(
    lm: LanguageModel, opening: tuple[int, ...], texts: FoldTexts, settings: FoldSettings, seed: int
) -> Method:
    """The method that the settings name.

    Args:
        lm: The model, which decides whether W_O can have a bias.
        opening: Tokens before every query.
        texts: Texts for the methods that read any.
        settings: Settings of the fold.
        seed: Seed of methods that draw random numbers.
    """
    match settings.method:
        case "ridge":
            return Folded(
                opening,
                texts.texts,
                texts.plain,
                plain_weight=settings.plain_weight,
                answer_weight=settings.answer_weight,
                strength=settings.strength,
                layers=settings.layers,
                # A bias only where an ordinary checkpoint can hold it.
                bias=lm.route.name == WITHOUT_WEIGHTS or output_bias(lm.model, lm.anatomy).kind != "none",
            )
        case "thought-vector":
            return Thought(opening, texts.texts, "vector")
        case "thought-matrix":
            return Thought(opening, texts.texts, "matrix")
        case "rank-one":
            return RankOne(opening)
        case "task-vector":
            return TaskVector(opening, texts.texts)
        case "kv-momentum":
            return KeyValueMomentum(opening)
        case "mezo":
            return Mezo(opening, seed=seed)


def fold_texts(experiment: Setup, drawn: DemonstrationSet, settings: FoldSettings) -> FoldTexts:
    """The calibration and plain texts of one seed; empty where the method reads none.

    Raises:
        ConfigError: A file holds too few texts.
        ContextError: A text of a file does not fit behind the demonstrations.
        TaskError: A file cannot be read.
    """
    texts: tuple[Query, ...] = ()
    source, plain_source = "none", "none"
    if settings.method in CALIBRATED:
        texts, source = calibration_texts(experiment, drawn, settings)
    plain: tuple[tuple[int, ...], ...] = ()
    if settings.method == "ridge" and settings.plain != "none" and settings.plain_weight > 0:
        plain, plain_source = plain_texts(experiment, settings)
    return FoldTexts(texts, source, plain, plain_source)


def chosen_texts(
    experiment: Setup, drawn: DemonstrationSet, settings: FoldSettings
) -> tuple[tuple[Query, ...], str] | None:
    """The calibration texts and their source; None where the model has to generate them.

    Raises:
        ConfigError: A file holds too few texts.
        ContextError: A text of a file does not fit behind the demonstrations.
        TaskError: A file cannot be read.
    """
    room = experiment.context - len(drawn.encoded.prefix)
    seed = drawn.demonstrations.seed
    if settings.calibration == "train":
        used = set(drawn.demonstrations.rows)
        rows = [example for example in experiment.task.split("train") if example.row not in used]
        chosen = random.Random(seed).sample(rows, len(rows))
        fitting = [query for query in _queries(experiment, chosen, settings.texts, room) if query is not None]
        if len(fitting) >= FEWEST_TEXTS:
            return tuple(fitting), "train"
        # The train split has too few other rows, so the model has to generate the texts.
    elif settings.calibration != "generated":
        path = Path(settings.calibration).expanduser()
        examples = unlabelled_texts(path, experiment.task)
        queries = _queries(experiment, examples, settings.texts, room)
        for example, query in zip(examples, queries, strict=False):
            if query is None:
                raise ContextError(
                    f"text {example.row + 1} of {path} does not fit behind the demonstrations: they take "
                    f"{len(drawn.encoded.prefix)} of {experiment.context} tokens. Shorten it, or fold fewer (-k)."
                )
        _require_enough(path, len(queries))
        return tuple(query for query in queries if query is not None), path.name
    return None


def calibration_texts(
    experiment: Setup, drawn: DemonstrationSet, settings: FoldSettings
) -> tuple[tuple[Query, ...], str]:
    """The calibration texts and their source, generated by the model where necessary.

    Raises:
        ConfigError: A file holds too few texts.
        ContextError: Texts do not fit behind the demonstrations.
        TaskError: A file cannot be read.
    """
    chosen = chosen_texts(experiment, drawn, settings)
    if chosen is not None:
        return chosen
    room = experiment.context - len(drawn.encoded.prefix)
    seed = drawn.demonstrations.seed
    prompts = generate_texts(
        experiment.lm, experiment.task, experiment.encoder, drawn.encoded, settings.texts, seed=seed
    )
    written = tuple(experiment.encoder.unlabelled(prompt) for prompt in prompts)
    # Generation may use the model's whole context, which can exceed the requested one; answers need room too.
    usable = tuple(query for query in written if query.width() <= room)
    if len(usable) < FEWEST_TEXTS:
        raise ContextError(
            f"only {len(usable)} of {len(written)} generated texts fit behind the demonstrations, which take "
            f"{len(drawn.encoded.prefix)} of {experiment.context} tokens. Fold fewer (-k)."
        )
    return usable, "generated"


def _require_enough(path: Path, n: int) -> None:
    if n < FEWEST_TEXTS:
        raise ConfigError(
            f"{path} holds {n} texts, which are too few to fold from: give at least {FEWEST_TEXTS}, preferably 256."
        )


def _queries(experiment: Setup, examples: Sequence[Example], most: int, room: int) -> list[Query | None]:
    """Examples as queries, until `most` of them fit; None for one that does not fit."""
    queries: list[Query | None] = []
    left = most
    for example in examples:
        if not left:
            break
        query = experiment.encoder.text(example)
        fits = query.width() <= room
        queries.append(query if fits else None)
        left -= fits
    return queries


def plain_texts_file(digest: str, opening: tuple[int, ...], texts: int, length: int) -> Path:
    """The cache file of the plain text that a model generated: this many texts, with this many tokens each."""
    key = f"{digest} {opening} {texts} {length}"
    return cache_dir() / "plain" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def plain_texts(experiment: Setup, settings: FoldSettings) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Plain text as token ids, and its source. Generated text is cached on disk."""
    lm, opening = experiment.lm, experiment.encoder.opening
    length = min(settings.plain_length, experiment.context - len(opening))
    if settings.plain != "generated":
        path = Path(settings.plain).expanduser()
        return plain_passages(experiment.encoder, path, length, settings.plain_texts), path.name
    kept = plain_texts_file(experiment.weights_digest, opening, settings.plain_texts, length)
    # A damaged file is generated again.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return tuple(tuple(map(int, ids)) for ids in json.loads(kept.read_text(encoding="utf-8"))), "generated"
    written = generate_plain(lm, opening, settings.plain_texts, length, seed=0)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        temporary.write_text(json.dumps(written), encoding="utf-8")
    return written, "generated"


def plain_passages(encoder: Encoder, path: Path, length: int, most: int | None = None) -> tuple[tuple[int, ...], ...]:
    """The longest `most` lines of a file as token ids, cut to `length` tokens, in the file's order.

    Raises:
        TaskError: The file cannot be read, or no line has two tokens.
        ModelError: The model has no embedding for a token of a line.
    """
    ids = [encoder.encode(line, f"line {number} of {path}") for number, line in enumerate(read_lines(path), 1)]
    cut = [line[:length] for line in ids if len(line) > 1]
    if not cut:
        raise TaskError(f"{path} holds no passage of two tokens or more. Write one passage per line.")
    # Prefer long lines to headings and other short ones.
    chosen = sorted(range(len(cut)), key=lambda i: -len(cut[i]))[:most]
    return tuple(cut[i] for i in sorted(chosen))


def perplexity_passages(experiment: Setup, file: str, most: int) -> tuple[tuple[int, ...], ...]:
    """The passages on which perplexity is measured, of at most 256 tokens each.

    Raises:
        TaskError: The file cannot be read or is empty.
    """
    length = min(256, experiment.context - len(experiment.encoder.opening))
    return plain_passages(experiment.encoder, Path(file).expanduser(), length, most)


def require_writable(lm: LanguageModel, method: FoldMethod, as_checkpoint: bool) -> None:
    """Check that a method's result can be saved for this model.

    Raises:
        ModelError: The method needs biases, which checkpoints of this family cannot hold.
    """
    biased = method in ("thought-vector", "thought-matrix")
    if as_checkpoint and biased and output_bias(lm.model, lm.anatomy).kind == "none":
        raise ModelError(
            f"{method} needs a bias behind W_O, and checkpoints of {type(lm.model).__name__} cannot hold one: write an "
            "adapter (--as lora), or fold by ridge."
        )
