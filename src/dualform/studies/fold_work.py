"""What a fold reads and computes, by whichever method, described before it runs."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dualform.errors import DualformError
from dualform.learners.base import DemonstrationSet, Setup
from dualform.models.cost.memory import BYTES
from dualform.models.cost.work import FINDING_BLOCKS, FINDING_MLP_INPUTS, SEPARATING_BLOCKS, WorkPart
from dualform.models.loading.identity import digest_of_weights
from dualform.models.loading.locate import find_model
from dualform.models.reading.layout import Query
from dualform.studies.fold_settings import CALIBRATED, FoldMethod, FoldSettings
from dualform.studies.folds import FoldTexts, chosen_texts, fold_learner, plain_passages, plain_texts_file, writing

_THROWN_AWAY = "texts that the model writes are written anew where they are of no use"
"""Why their time is a range."""


def fold_parts(
    experiment: Setup, drawn: DemonstrationSet, settings: FoldSettings, name: str = "fold"
) -> list[WorkPart]:
    """One fold of one seed's demonstrations, and the writing of texts where the model writes them."""
    parts: list[WorkPart] = []
    texts: tuple[Query, ...] = ()
    if settings.method in CALIBRATED:
        chosen = chosen_texts(experiment, drawn, settings)
        if chosen is None:
            texts = _stand_ins(experiment, settings.texts)
            written = writing(len(drawn.encoded.prefix), [len(text.prompt) for text in texts])
            label = f"{name}: texts written by the model"
            # Some are thrown away; ten tries for each are the most.
            parts.append(WorkPart(label, written * 1.5, written, written * 10, (_THROWN_AWAY,)))
        else:
            texts, _ = chosen
    plain: tuple[tuple[int, ...], ...] = ()
    if settings.method == "ridge" and settings.plain != "none" and settings.plain_weight > 0:
        plain, more = _plain(experiment, settings)
        parts += more
    opening, seed = experiment.encoder.opening, drawn.demonstrations.seed
    learner = fold_learner(experiment.lm, opening, FoldTexts(texts, "", plain, ""), settings, seed)
    return [*parts, WorkPart(name, learner.work(experiment.lm.shape, drawn.encoded))]


def reads_twice(settings: FoldSettings) -> bool:
    """Whether the folded model reads each query behind the demonstrations as well."""
    return settings.method == "rank-one"


def fold_prefix(settings: FoldSettings, experiment: Setup, drawn: DemonstrationSet) -> int:
    """Tokens that stand before a query of the folded model."""
    return len(drawn.encoded.prefix) if settings.method == "kv-momentum" else len(experiment.encoder.opening)


def fold_bytes(experiment: Setup, settings: FoldSettings) -> int:
    """Memory that folding takes on top of a forward's: hidden states of all texts twice, and equations in float64."""
    if settings.method != "ridge":
        return 0
    shape = experiment.lm.shape
    width = shape.n_heads * shape.d_head
    query = sum(query.width() for query in experiment.queries) / max(1, len(experiment.queries))
    tokens = settings.texts * (2 * query + 1)
    tokens += 0 if settings.plain == "none" else settings.plain_texts * settings.plain_length
    equations = (3 * width * width + 2 * width * shape.d_model) * 8
    deltas = shape.n_layers * width * shape.d_model * 4
    return round(tokens * shape.d_model * BYTES[experiment.config.dtype] + equations + deltas)


def check_forwards(method: FoldMethod) -> int:
    """Short forwards with which `check_fold_method` finds blocks and MLP input projections."""
    checks = {
        "ridge": SEPARATING_BLOCKS - 1,
        "thought-matrix": FINDING_MLP_INPUTS,
        "rank-one": FINDING_MLP_INPUTS,
        "task-vector": FINDING_BLOCKS,
    }
    return checks.get(method, 0)


def _stand_ins(experiment: Setup, n: int) -> tuple[Query, ...]:
    """Texts as long as queries are: what a model writes cannot be known."""
    queries: Sequence[Query] = experiment.queries[:n] or experiment.selection_queries
    return tuple(queries[i % len(queries)] for i in range(n))


def _plain(experiment: Setup, settings: FoldSettings) -> tuple[tuple[tuple[int, ...], ...], list[WorkPart]]:
    """Plain texts, of the right lengths where they are yet to be written, and their writing."""
    opening = experiment.encoder.opening
    length = min(settings.plain_length, experiment.context - len(opening))
    if settings.plain != "generated":
        path = Path(settings.plain).expanduser()
        return plain_passages(experiment.encoder, path, length, settings.plain_texts), []
    plain = ((0,) * length,) * settings.plain_texts
    if plain_is_kept(experiment, settings, length):
        return plain, []
    label = "plain text written by the model (once)"
    return plain, [WorkPart(label, writing(len(opening), [length] * settings.plain_texts))]


def plain_is_kept(experiment: Setup, settings: FoldSettings, length: int) -> bool:
    """Whether the model's plain text lies in the cache, as `folds.plain_texts` keeps it."""
    digest = _weights_digest(experiment)
    if digest is None:
        return False
    return plain_texts_file(digest, experiment.encoder.opening, settings.plain_texts, length).exists()


def _weights_digest(experiment: Setup) -> str | None:
    """As `Setup.weights_digest`; of a model without weights, from its file alone.

    None where no file is found, where it names weights otherwise, or where it is in parts.
    """
    model = experiment.lm.model
    if not any(weight.is_meta for weight in model.parameters()):
        return experiment.weights_digest
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError, DualformError):
        found = find_model(experiment.lm.name)
        if found.adapter is not None:
            return None
        path = Path(found.source) / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            for name, parameter in model.named_parameters():
                if file.get_slice(name).get_shape() != list(parameter.shape):
                    return None
            stored = ((name, file.get_tensor(name)) for name, _ in model.named_parameters())
            return digest_of_weights(stored, model.dtype)
    return None
