"""Momentum put into a model that was trained without: each number is that of a plain reading of the model."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, DualformError, TaskError
from dualform.models.editing.momentum import apply_momentum
from dualform.models.loading.load import load_model
from dualform.studies.momentum import pretrained as study
from dualform.studies.momentum.config import MomentumConfig
from dualform.studies.momentum.pretrained import LENGTH, put_into, require_usable
from dualform.studies.momentum.result import PretrainedMomentum
from dualform.studies.pieces import NoPieceStore, Piece
from dualform.studies.seed_statistics import paired_difference
from tests.studies.momentum_setting import small_momentum, write_texts
from tests.studies.small import MemoryStore
from tests.tiny import BOS_ID, save_tiny

STEPS = 2


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With dropout, which is drawn while it is finetuned."""
    return str(save_tiny("gpt2", tmp_path_factory.mktemp("models") / "gpt2", resid_pdrop=0.4, embd_pdrop=0.4))


@pytest.fixture(scope="module")
def study_config(texts: dict[str, Any], model: str) -> MomentumConfig:
    return small_momentum(texts, pretrained=(model,), pretrained_etas=(1e-9, 0.3), pretrained_steps=STEPS)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def records(study_config: MomentumConfig, model: str, store: MemoryStore) -> list[PretrainedMomentum]:
    return put_into(study_config, model, store)


def digests(folder: str | Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).iterdir()}


def windows(name: str, path: str) -> list[list[int]]:
    """As many as fit, at most 64, evenly spread, each behind the opening token."""
    tokenizer = load_model(name, device="cpu").tokenizer
    documents = Path(path).read_text(encoding="utf-8").strip().split("\n\n")
    ids = [token for document in documents for token in tokenizer(document)["input_ids"]]
    own = LENGTH - 1
    n = min(64, len(ids) // own)
    starts = [int((len(ids) - own) * i / (n - 1)) for i in range(n)]
    return [[BOS_ID, *ids[start : start + own]] for start in starts]


@torch.no_grad()
def perplexity(model: Any, read: list[list[int]]) -> float:
    nats: list[float] = []
    for window in read:
        logits = model(input_ids=torch.tensor([window]), use_cache=False).logits[0].double()
        nats += [-float(logits[i].log_softmax(0)[token]) for i, token in enumerate(window[1:])]
    return math.exp(sum(nats) / len(nats))


def test_perplexity_at_inference_is_that_of_the_model_with_momentum(
    records: list[PretrainedMomentum], model: str, texts: dict[str, Any]
) -> None:
    read = windows(model, texts["test"][0])
    lm = load_model(model, device="cpu")
    assert [record.eta for record in records] == [1e-9, 0.3]
    assert {record.model for record in records} == {model}
    base = perplexity(lm.model, read)
    assert records[0].base == records[1].base == pytest.approx(base, rel=1e-5)
    assert records[0].perplexity == pytest.approx(base, rel=1e-4)
    apply_momentum(lm.model, 0.3)
    assert records[1].perplexity == pytest.approx(perplexity(lm.model, read), rel=1e-5)
    assert records[1].perplexity != pytest.approx(base, rel=1e-2)


def test_a_seeds_finetunes_read_the_same_and_drop_the_same(
    records: list[PretrainedMomentum], store: MemoryStore
) -> None:
    hardly, much = records
    assert hardly.difference is not None
    assert much.difference is not None
    # So little momentum changes nothing but digits; with dropout of its own it would.
    # On processors that round it away altogether the difference is 0 exactly.
    assert all(value is not None and abs(value) < 1e-5 for value in hardly.difference.per_seed.values())
    assert all(abs(value or 0.0) > 1e-3 for value in much.difference.per_seed.values())
    assert hardly.base_tuned is not None
    assert hardly.base_tuned.n == 2
    assert hardly.base_tuned.mean != pytest.approx(hardly.base or 0.0, rel=1e-6)
    own, without = (
        [store.pieces[f"{much.model}, eta {eta}, finetuned, seed {seed}"].about["loss"] for seed in (1, 2)]
        for eta in (0.3, 0.0)
    )
    assert own[0] != own[1]
    assert much.difference == paired_difference((1, 2), own, without)
    assert much.tuned is not None
    assert much.tuned.mean == pytest.approx(sum(map(math.exp, own)) / 2)


def test_without_steps_nothing_is_finetuned(study_config: MomentumConfig, model: str, records: Any) -> None:
    without = put_into(
        study_config.model_copy(update={"pretrained_steps": 0, "pretrained_etas": (0.3,)}), model, NoPieceStore()
    )
    (record,) = without
    assert (record.tuned, record.base_tuned, record.difference) == (None, None, None)
    assert (record.perplexity, record.base) == (records[1].perplexity, records[1].base)


def test_the_models_files_and_the_global_random_state_are_left_alone(study_config: MomentumConfig, model: str) -> None:
    before, state = digests(model), torch.get_rng_state()
    put_into(study_config.model_copy(update={"seeds": (1,), "pretrained_etas": (0.3,)}), model, NoPieceStore())
    assert digests(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_it_goes_on_where_it_was_stopped(
    study_config: MomentumConfig, model: str, records: list[PretrainedMomentum], store: MemoryStore
) -> None:
    half = MemoryStore()

    def put(piece: Piece) -> None:
        if len(half.put_names) == 4:
            raise KeyboardInterrupt
        MemoryStore.put(half, piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "put", put)
        with pytest.raises(KeyboardInterrupt):
            put_into(study_config, model, half)
    assert half.put_names == store.put_names[:4]
    steps: list[float] = []
    assert put_into(study_config, model, half, lambda amount, doing: steps.append(amount)) == records
    assert half.put_names == store.put_names
    assert sum(steps) == (1 + 2) * 2 * STEPS


def new_weights(config: MomentumConfig, folder: Path) -> None:
    save_tiny("gpt2", folder / "gpt2", seed=1)


def new_test(config: MomentumConfig, folder: Path) -> None:
    rewrite(config.test[0])


def new_corpus(config: MomentumConfig, folder: Path) -> None:
    rewrite(config.corpus[0])


def rewrite(path: str) -> None:
    Path(path).write_text(Path(path).read_text(encoding="utf-8").replace("lantern", "ladder"), encoding="utf-8")


@pytest.mark.parametrize("change", [new_weights, new_test, new_corpus])
def test_other_weights_or_text_under_the_same_name_make_other_pieces(
    change: Callable[[MomentumConfig, Path], None], tmp_path: Path
) -> None:
    name = str(save_tiny("gpt2", tmp_path / "gpt2"))
    config = small_momentum(write_texts(tmp_path), seeds=(1,), pretrained=(name,), pretrained_etas=(0.3,))
    config = config.model_copy(update={"pretrained_steps": 1})
    kept = MemoryStore()
    put_into(config, name, kept)
    n = len(kept.put_names)
    change(config, tmp_path)
    after = put_into(config, name, kept)
    assert kept.put_names[n:] == kept.put_names[:n]
    assert after == put_into(config, name, NoPieceStore())


def test_a_model_with_fewer_positions_gets_shorter_windows(texts: dict[str, Any], tmp_path: Path) -> None:
    name = str(save_tiny("gpt2", tmp_path / "gpt2", n_positions=40))
    seen: list[Tensor] = []
    config = small_momentum(texts, seeds=(1,), pretrained=(name,), pretrained_etas=(0.3,), pretrained_steps=1)
    require_usable(config, name)
    with pytest.MonkeyPatch.context() as patch:
        nats = study._nats
        patch.setattr(study, "_nats", lambda lm, read: seen.append(read) or nats(lm, read))  # type: ignore[func-returns-value]
        put_into(config, name, NoPieceStore())
    assert {read.shape[1] for read in seen} == {40}


def few(folder: Path) -> tuple[str, ...]:
    path = folder / "few.txt"
    path.write_text("a few words\n", encoding="utf-8")
    return (str(path),)


def saved_with_momentum(folder: Path) -> str:
    name = str(save_tiny("gpt2", folder / "gpt2"))
    lm = load_model(name, device="cpu")
    apply_momentum(lm.model, 0.2)
    lm.model.save_pretrained(name)
    return name


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("test", TaskError, "few.txt has 6 tokens of"),
        ("corpus", TaskError, f"at least {LENGTH - 1} are needed. Give more text"),
        ("momentum", ConfigError, "was saved with momentum: name a model that was trained without"),
    ],
)
def test_what_cannot_be_used_is_told(
    what: str, kind: type[DualformError], words: str, study_config: MomentumConfig, model: str, tmp_path: Path
) -> None:
    name = saved_with_momentum(tmp_path) if what == "momentum" else model
    changes = {} if what == "momentum" else {what: few(tmp_path)}
    with pytest.raises(kind) as error:
        require_usable(study_config.model_copy(update=changes), name)
    assert words in str(error.value)
    require_usable(study_config, model)
