"""What a fold costs, by whichever method: texts, forwards, equations."""

import contextlib
import hashlib
import math
import random
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dualform.files import cache_dir
from dualform.learners.base import Drawn, Setup
from dualform.learners.folded import FEWEST_TEXTS
from dualform.learners.kv_momentum import KeyValueMomentum
from dualform.learners.mezo import Mezo
from dualform.learners.task_vector import TaskVector
from dualform.models.cost.memory import BYTES
from dualform.models.loading.identity import digest_of_weights
from dualform.models.loading.locate import find_model
from dualform.models.reading.layout import Query
from dualform.studies.fold_settings import CALIBRATED, FoldSettings
from dualform.studies.folds import plain_passages
from dualform.studies.plan import Cost, Part
from dualform.studies.plan_costs import Costs, Reading
from dualform.tasks.texts import unlabelled_texts

READERS = 3
"""Times that a few tokens are read to find what reads the MLPs' inputs (`models.readers`)."""
RIDGE_CHECKS = 4
"""The same before a ridge fold: the blocks are found, shown to be separable (in a whole forward, then each by itself),
and the norms behind them found."""
_THROWN_AWAY = "texts that the model writes are written anew where they are of no use"
"""Why their time is a range."""
_GENERATED_ROWS = 16
"""Texts that are written side by side."""
_EIGENDECOMPOSITION = 9.0
"""Operations for each cube of the width; see `Folded`."""


def fold_parts(costs: Costs, bench: Setup, drawn: Drawn, settings: FoldSettings, name: str = "fold") -> list[Part]:
    """One fold of one seed's demonstrations, and the writing of texts where the model writes them."""
    parts = []
    texts = _texts(bench, drawn, settings)
    if texts is None:
        # As long as queries are: what a model writes cannot be known.
        queries = bench.queries[: settings.texts] or bench.selection_queries
        texts = [queries[i % len(queries)] for i in range(settings.texts)]
        written = _written(costs, len(drawn.encoded.prefix), [len(text.prompt) for text in texts])
        # Some are thrown away; ten tries for each are the most.
        parts.append(Part(f"{name}: texts written by the model", written * 1.5, written, written * 10, (_THROWN_AWAY,)))
    plain: list[int] = []
    if settings.method == "ridge" and settings.plain != "none" and settings.plain_weight > 0:
        plain, writing = _plain(costs, bench, settings)
        parts += writing
    parts.append(Part(name, fold_cost(costs, bench, drawn, settings, texts, plain)))
    return parts


def fold_cost(
    costs: Costs,
    bench: Setup,
    drawn: Drawn,
    settings: FoldSettings,
    texts: Sequence[Query],
    plain: Sequence[int],
) -> Cost:
    """Everything but the writing of texts."""
    encoded, opening = drawn.encoded, len(bench.encoder.opening)
    prefix = len(encoded.prefix)
    match settings.method:
        case "ridge":
            return _ridge(costs, prefix, opening, texts, plain, settings)
        case "thought-vector" | "thought-matrix":
            prompts = [Query(text.prompt, ()) for text in texts]
            both = costs.read(prompts, prefix) + costs.read(prompts, opening)
            found = costs.looked_at(READERS if settings.method == "thought-matrix" else 0)
            return costs.encode(prefix) + costs.encode(opening) * 2 + both + found
        case "rank-one":
            return costs.encode(prefix) + costs.encode(opening) + costs.looked_at(READERS)
        case "task-vector":
            searched = list(texts[: TaskVector((), tuple(texts[:1])).search_texts])
            layers = costs.shape.n_layers
            cost = costs.encode(prefix) + costs.encode(opening) + costs.read(texts, prefix) + costs.looked_at()
            return cost + costs.read(searched, opening) * layers
        case "kv-momentum":
            passes = KeyValueMomentum(bench.encoder.opening).passes - 1
            own = prefix - opening
            again = costs.read_row(Reading((own,), 0, prefix)) if own else Cost()
            return costs.encode(prefix) + again * passes
        case "mezo":
            mezo = Mezo(bench.encoder.opening)
            rates = len(set(mezo.learning_rates))
            shown = [
                Query(ids[:-n_answer], (ids[-n_answer:],))
                for ids, n_answer in zip(encoded.sequences, encoded.n_answer_tokens, strict=True)
            ]
            every = costs.read(shown, 0)
            batch = min(mezo.batch or len(shown), len(shown))
            # Directions are drawn three times a step, for all trained weights.
            drawing = Cost(seconds=3 * costs.shape.key_value / costs.machine.exponentials)
            step = every * (2 * batch / len(shown)) + drawing + costs.applied(2)
            return (step * mezo.steps + every + costs.encode(opening)) * rates
    raise AssertionError(settings.method)


def reads_twice(settings: FoldSettings) -> bool:
    """Whether the folded model reads each query behind the demonstrations as well."""
    return settings.method == "rank-one"


def fold_prefix(settings: FoldSettings, bench: Setup, drawn: Drawn) -> int:
    """Tokens that stand before a query of the folded model."""
    return len(drawn.encoded.prefix) if settings.method == "kv-momentum" else len(bench.encoder.opening)


def fold_bytes(costs: Costs, bench: Setup, settings: FoldSettings) -> int:
    """Memory that folding takes beside a forward's: hidden states of all texts twice, and the equations in float64."""
    if settings.method != "ridge":
        return 0
    shape = costs.shape
    width = shape.n_heads * shape.d_head
    query = sum(query.width() for query in bench.queries) / max(1, len(bench.queries))
    tokens = settings.texts * (2 * query + 1)
    tokens += 0 if settings.plain == "none" else settings.plain_texts * settings.plain_length
    equations = (3 * width * width + 2 * width * shape.d_model) * 8
    return round(tokens * shape.d_model * BYTES[costs.dtype] + equations + shape.n_layers * width * shape.d_model * 4)


def _ridge(
    costs: Costs, prefix: int, opening: int, texts: Sequence[Query], plain: Sequence[int], settings: FoldSettings
) -> Cost:
    shape, machine = costs.shape, costs.machine
    own = [text.width() for text in texts]
    # Every text passes every block, behind the demonstrations and alone; plain texts alone.
    alone = [Query((0,) * (opening + len(text.prompt)), text.answers) for text in texts]
    plainly = [Query((0,) * (opening + n), ()) for n in plain]
    cost = costs.encode(prefix) + costs.read(texts, prefix) + costs.read(alone, 0) + costs.read(plainly, 0)
    cost += costs.encode(opening) + costs.looked_at(RIDGE_CHECKS)
    layers = shape.n_layers if settings.layers is None else len(settings.layers)
    share = layers / shape.n_layers
    lengths = [n + opening for n in (*own, *plain)]
    tokens, pairs = sum(lengths), sum(n * (n + 1) / 2 for n in lengths)
    width = shape.n_heads * shape.d_head
    projections = shape.d_model * (2 * shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    look = 2.0 * projections * tokens + 4.0 * width * pairs
    gram = 2.0 * tokens * width * (width + shape.d_model)
    solving = _EIGENDECOMPOSITION * width**3 + 4.0 * width**2 * shape.d_model
    flops = layers * (look + gram + solving)
    # The second look is a forward that ends behind attention; equations are in float64, at half of the rate, and an
    # eigendecomposition reaches a quarter of that.
    again = (costs.read(alone, 0) + costs.read(plainly, 0)).seconds * share * 0.4
    rate = machine.rate(1024, packed=False) / (1 if costs.dtype == "float64" else 2)
    seconds = again + layers * (gram / rate + solving / (rate / 4))
    return cost + Cost(0.0, 0.0, flops, seconds)


def _texts(bench: Setup, drawn: Drawn, settings: FoldSettings) -> list[Query] | None:
    """Calibration texts as `folds` chooses them; None where the model would write them."""
    if settings.method not in CALIBRATED:
        return []
    room = bench.context - len(drawn.encoded.prefix)
    if settings.calibration == "generated":
        return None
    if settings.calibration != "train":
        examples = unlabelled_texts(Path(settings.calibration).expanduser(), bench.task)
        return [bench.encoder.text(example) for example in examples[: settings.texts]]
    shown = set(drawn.demonstrations.rows)
    rows = [example for example in bench.task.split("train") if example.row not in shown]
    found: list[Query] = []
    for example in random.Random(drawn.demonstrations.seed).sample(rows, len(rows)):
        if len(found) == settings.texts:
            break
        query = bench.encoder.text(example)
        if query.width() <= room:
            found.append(query)
    return found if len(found) >= FEWEST_TEXTS else None


def _plain(costs: Costs, bench: Setup, settings: FoldSettings) -> tuple[list[int], list[Part]]:
    """Lengths of plain texts, and their writing."""
    opening = bench.encoder.opening
    length = min(settings.plain_length, bench.context - len(opening))
    if settings.plain != "generated":
        path = Path(settings.plain).expanduser()
        return [len(text) for text in plain_passages(bench.encoder, path, length, settings.plain_texts)], []
    lengths = [length] * settings.plain_texts
    if plain_is_kept(bench, settings, length):
        return lengths, []
    return lengths, [Part("plain text written by the model (once)", _written(costs, len(opening), lengths))]


def _written(costs: Costs, prefix: int, lengths: Sequence[int]) -> Cost:
    """Sampling, token by token, some texts side by side behind what is read once."""
    machine, shape = costs.machine, costs.shape
    cost = costs.encode(prefix)
    for first in range(0, len(lengths), _GENERATED_ROWS):
        rows = lengths[first : first + _GENERATED_ROWS]
        longest = max(rows)
        # Tokens that are drawn but the last are read; the average one stands in the middle of its text.
        step = costs.read_row(Reading((1,) * len(rows), len(rows), prefix + longest // 2))
        # In double precision, sorted: a dozen passes and as many again for each halving that a sort makes.
        n = len(rows) * shape.vocabulary
        drawing = machine.passes(n, 6 + math.log2(shape.vocabulary), 8)
        share = sum(rows) / (longest * len(rows))
        cost += (step + Cost(seconds=drawing)) * ((longest - 1) * share)
    return cost


def plain_is_kept(bench: Setup, settings: FoldSettings, length: int) -> bool:
    """Whether the model's plain text lies in the cache, as `folds.plain_texts` keeps it."""
    digest = _weights_digest(bench)
    if digest is None:
        return False
    about = f"{digest} {bench.encoder.opening} {settings.plain_texts} {length}"
    return (cache_dir() / "plain" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json").exists()


def _weights_digest(bench: Setup) -> str | None:
    """As `bench.weights_digest`, from the file alone; None where the file names weights otherwise, or is in parts."""
    model = bench.lm.model
    with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError):
        found = find_model(bench.lm.name)
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
