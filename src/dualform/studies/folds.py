"""A fold of a task's demonstrations: the texts that it is calibrated on, and the method that its settings name."""

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
    """What one seed's fold reads beside the demonstrations."""

    texts: tuple[Query, ...]
    source: str
    plain: tuple[tuple[int, ...], ...]
    """Token ids, opening left out."""
    plain_source: str


@dataclass(frozen=True)
class FoldRecord:
    """A finished fold and what must be told about it."""

    adapted: Adapted
    texts: FoldTexts
    strength: float | None
    """Mean over layers; None for methods without one."""
    explained: tuple[float | None, ...]
    """By layer; empty for other methods."""

    def about(self) -> dict[str, Any]:
        """What a piece keeps of it, for `FoldReport`."""
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
        settings: Of the fold.
        report: Told which further share of the work is done.

    Raises:
        DualformError: Texts or model cannot be used, named.
    """
    begin = time.perf_counter()
    texts = fold_texts(experiment, drawn, settings)
    seconds = time.perf_counter() - begin
    learner = fold_learner(experiment.lm, experiment.encoder.opening, texts, settings, drawn.demonstrations.seed)
    written = _cost_of_writing(experiment, drawn, texts, seconds)
    if not isinstance(learner, Folded):
        made = FoldRecord(_charged(learner.adapt(experiment.lm, drawn.encoded), written), texts, None, ())
        report(1.0)
        return made
    layers = len(experiment.lm.anatomy.layers)
    fold = learner.fold(experiment.lm, drawn.encoded, lambda: report(1 / layers))
    strengths = [strength for strength in fold.strengths if strength is not None]
    return FoldRecord(_charged(fold.adapted, written), texts, sum(strengths) / len(strengths), fold.explained)


def _cost_of_writing(experiment: Setup, drawn: DemonstrationSet, texts: FoldTexts, seconds: float) -> AdaptationCost:
    """What the model's own texts took, token by token; those that it wrote in vain count in seconds alone.

    Plain text counts in full although it is written once a model and kept: who folds once pays for it.
    """
    work = Work()
    if texts.source == "generated":
        work += writing(len(drawn.encoded.prefix), [len(text.prompt) for text in texts.texts])
    if texts.plain_source == "generated":
        work += writing(len(experiment.encoder.opening), [len(text) for text in texts.plain])
    return AdaptationCost.of(work, experiment.lm.shape, seconds)


def writing(prefix: int, lengths: Sequence[int]) -> Work:
    """Texts written by the model behind a prefix, which is read once."""
    return encode(prefix).uncharged + Work.of(Decoding(tuple(lengths), prefix))


def _charged(adapted: Adapted, more: AdaptationCost) -> Adapted:
    """The same, with more cost."""
    if not isinstance(adapted, AdaptedModel | PatchedModel):
        return adapted
    own = adapted.cost
    cost = AdaptationCost(own.seconds + more.seconds, own.tokens + more.tokens, own.flops + more.flops)
    return replace(adapted, cost=cost)


def check_fold(experiment: Setup, settings: FoldSettings) -> tuple[str, ...]:
    """Check before any work that a fold can be made: the model, the layers, the files.

    Returns:
        What its files hold, for `digest`: a file may change while its name stays.

    Raises:
        ConfigError: A layer does not exist, or a file holds too few texts.
        ModelError: W_O is not known or cannot be edited.
        TaskError: A file cannot be read.
    """
    if settings.method == "ridge":
        require_layers(experiment.lm, settings.layers)
        require_editable_outputs(experiment.lm)
    held = []
    if settings.method in CALIBRATED and settings.calibration not in ("train", "generated"):
        path = Path(settings.calibration).expanduser()
        examples = unlabelled_texts(path, experiment.task)
        _require_enough(path, len(examples))
        held.append(repr([sorted(example.fields.items()) for example in examples]))
    if settings.method == "ridge" and settings.plain not in ("generated", "none"):
        held.append(repr(plain_texts(experiment, settings)))
    return tuple(held)


def fold_learner(
    lm: LanguageModel, opening: tuple[int, ...], texts: FoldTexts, settings: FoldSettings, seed: int
) -> Method:
    """The method that the settings name.

    Args:
        lm: The model, which says whether its W_O can have a bias.
        opening: Tokens before every query.
        texts: For the methods that read any.
        settings: Of the fold.
        seed: Of methods that draw numbers.
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
                # Only what an ordinary checkpoint can hold.
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
    """Calibration texts and plain text for one seed, as the settings say; empty where the method reads none.

    Raises:
        ConfigError: A file holds too few texts.
        ContextError: A text of a file does not fit behind the demonstrations.
        TaskError: A file cannot be read.
    """
    texts: tuple[Query, ...] = ()
    source, plain_source = "none", "none"
    if settings.method in CALIBRATED:
        texts, source = _calibration(experiment, drawn, settings)
    plain: tuple[tuple[int, ...], ...] = ()
    if settings.method == "ridge" and settings.plain != "none" and settings.plain_weight > 0:
        plain, plain_source = plain_texts(experiment, settings)
    return FoldTexts(texts, source, plain, plain_source)


def chosen_texts(
    experiment: Setup, drawn: DemonstrationSet, settings: FoldSettings
) -> tuple[tuple[Query, ...], str] | None:
    """Calibration texts and where they are from; None where the model has to write them.

    Raises:
        ConfigError: A file holds too few texts.
        ContextError: A text of a file does not fit behind the demonstrations.
        TaskError: A file cannot be read.
    """
    room = experiment.context - len(drawn.encoded.prefix)
    seed = drawn.demonstrations.seed
    if settings.calibration == "train":
        shown = set(drawn.demonstrations.rows)
        rows = [example for example in experiment.task.split("train") if example.row not in shown]
        chosen = random.Random(seed).sample(rows, len(rows))
        fitting = [query for query in _queries(experiment, chosen, settings.texts, room) if query is not None]
        if len(fitting) >= FEWEST_TEXTS:
            return tuple(fitting), "train"
        # A task with hardly more rows than demonstrations: the model writes what is missing.
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


def _calibration(experiment: Setup, drawn: DemonstrationSet, settings: FoldSettings) -> tuple[tuple[Query, ...], str]:
    chosen = chosen_texts(experiment, drawn, settings)
    if chosen is not None:
        return chosen
    room = experiment.context - len(drawn.encoded.prefix)
    seed = drawn.demonstrations.seed
    prompts = generate_texts(
        experiment.lm, experiment.task, experiment.encoder, drawn.encoded, settings.texts, seed=seed
    )
    written = tuple(experiment.encoder.unlabelled(prompt) for prompt in prompts)
    # Written in the model's own room, which may be wider than the context asked for, and answers need some too.
    usable = tuple(query for query in written if query.width() <= room)
    if len(usable) < FEWEST_TEXTS:
        raise ContextError(
            f"{len(usable)} of {len(written)} texts that the model wrote fit behind the demonstrations, which take "
            f"{len(drawn.encoded.prefix)} of {experiment.context} tokens. Fold fewer (-k)."
        )
    return usable, "generated"


def _require_enough(path: Path, n: int) -> None:
    if n < FEWEST_TEXTS:
        raise ConfigError(
            f"{path} holds {n} texts, which are too few to fold from: give at least {FEWEST_TEXTS}, better 256."
        )


def _queries(experiment: Setup, examples: Sequence[Example], most: int, room: int) -> list[Query | None]:
    """As queries, until there are so many; None where one does not fit."""
    found: list[Query | None] = []
    left = most
    for example in examples:
        if not left:
            break
        query = experiment.encoder.text(example)
        fits = query.width() <= room
        found.append(query if fits else None)
        left -= fits
    return found


def plain_texts_file(digest: str, opening: tuple[int, ...], texts: int, length: int) -> Path:
    """Where the plain text that a model wrote is kept: for these weights, so many texts, so many tokens each."""
    about = f"{digest} {opening} {texts} {length}"
    return cache_dir() / "plain" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def plain_texts(experiment: Setup, settings: FoldSettings) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Plain text as token ids, and where it came from. What the model writes is kept in the cache."""
    lm, opening = experiment.lm, experiment.encoder.opening
    length = min(settings.plain_length, experiment.context - len(opening))
    if settings.plain != "generated":
        path = Path(settings.plain).expanduser()
        return plain_passages(experiment.encoder, path, length, settings.plain_texts), path.name
    kept = plain_texts_file(experiment.weights_digest, opening, settings.plain_texts, length)
    # One that is damaged is written anew.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return tuple(tuple(map(int, some)) for some in json.loads(kept.read_text(encoding="utf-8"))), "generated"
    written = generate_plain(lm, opening, settings.plain_texts, length, seed=0)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        temporary.write_text(json.dumps(written), encoding="utf-8")
    return written, "generated"


def plain_passages(encoder: Encoder, path: Path, length: int, most: int | None = None) -> tuple[tuple[int, ...], ...]:
    """The lines of a file as token ids, cut to `length`; the longest `most` of them, in the file's order.

    Raises:
        TaskError: The file cannot be read, or no line of it is two tokens long.
        ModelError: A line holds a token that the model has no embedding for.
    """
    ids = [encoder.encode(line, f"line {number} of {path}") for number, line in enumerate(read_lines(path), 1)]
    cut = [some[:length] for some in ids if len(some) > 1]
    if not cut:
        raise TaskError(f"{path} holds no passage of two tokens or more. Write one passage a line.")
    # Headings and other short lines say little.
    chosen = sorted(range(len(cut)), key=lambda i: -len(cut[i]))[:most]
    return tuple(cut[i] for i in sorted(chosen))


def perplexity_passages(experiment: Setup, file: str, most: int) -> tuple[tuple[int, ...], ...]:
    """Passages of at most 256 tokens on which perplexity is measured.

    Raises:
        TaskError: The file cannot be read or is empty.
    """
    length = min(256, experiment.context - len(experiment.encoder.opening))
    return plain_passages(experiment.encoder, Path(file).expanduser(), length, most)


def require_writable(lm: LanguageModel, method: FoldMethod, as_checkpoint: bool) -> None:
    """Check that a method's outcome can be written down for this model.

    Raises:
        ModelError: It needs biases that checkpoints of this family cannot hold.
    """
    biased = method in ("thought-vector", "thought-matrix")
    if as_checkpoint and biased and output_bias(lm.model, lm.anatomy).kind == "none":
        raise ModelError(
            f"{method} needs a bias behind W_O, and checkpoints of {type(lm.model).__name__} cannot hold one: write an "
            "adapter (--as lora), or fold by ridge."
        )
