import errno
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dualform.errors import ConfigError, StorageError, TrainingError
from dualform.lab import checkpoints
from dualform.lab.checkpoints import steps_in
from dualform.lab.corpus import Corpus
from dualform.lab.losses import LossRecord, read_losses
from dualform.lab.pretraining import Pretrained, pretrain
from dualform.lab.recipe import Recipe, load_recipe
from dualform.lab.tokenizer import train_tokenizer
from dualform.lab.windows import Windows, gather_windows, spread_windows
from dualform.models.editing.momentum import apply_momentum, momentum_of
from dualform.models.loading.load import load_model
from tests.lab.setting import PulledPlugError, StopAt, sentences, small_corpus, small_recipe


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def validation(corpus: Corpus) -> Corpus:
    return small_corpus(corpus.path.parent, "validation", n=60, seed=1, corpus=corpus)


@pytest.fixture(scope="module")
def whole(corpus: Corpus, validation: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """An uninterrupted run."""
    return trained(small_recipe(), corpus, tmp_path_factory.mktemp("whole"), validation=validation)


def trained(recipe: Recipe, corpus: Corpus, folder: Path, **how: object) -> Pretrained:
    return pretrain(recipe, corpus, folder, device="cpu", **how)  # type: ignore[arg-type]


def weights(run: Pretrained) -> dict[str, Tensor]:
    return dict(run.model.state_dict())


def same(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def untimed(losses: tuple[LossRecord, ...]) -> list[LossRecord]:
    return [replace(record, seconds=0.0) for record in losses]


# --- what a step is ---


def by_hand(recipe: Recipe, corpus: Corpus) -> dict[str, Tensor]:
    """The slow, obvious twin: whole batches, the model's own loss, AdamW written out."""
    model = recipe.build(corpus.tokenizer.eos_token_id)
    windows = Windows(corpus.count, recipe.length, recipe.data_seed)
    named = dict(model.named_parameters())
    first = {name: torch.zeros_like(weight) for name, weight in named.items()}
    second = {name: torch.zeros_like(weight) for name, weight in named.items()}
    for step in range(recipe.steps):
        rows = windows.batch(corpus.ids, step, recipe.sequences)
        # The model shifts by itself, and so leaves the last position out: it gets one that does not count.
        logits = model(input_ids=rows).logits[:, :-1]
        loss = -logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).mean()
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))
        shrunk = 1.0 if recipe.clip is None else min(1.0, recipe.clip / (float(norm) + 1e-6))
        rate, (beta1, beta2) = recipe.rate(step), recipe.betas
        with torch.no_grad():
            for name, weight in named.items():
                g = shrunk * gradients[name]
                first[name].mul_(beta1).add_((1 - beta1) * g)
                second[name].mul_(beta2).add_((1 - beta2) * g**2)
                if weight.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                    weight.mul_(1 - rate * recipe.weight_decay)
                mean = first[name] / (1 - beta1 ** (step + 1))
                spread = (second[name] / (1 - beta2 ** (step + 1))).sqrt() + recipe.epsilon
                weight.sub_(rate * mean / spread)
    return dict(model.state_dict())


@pytest.mark.parametrize("clip", [0.5, None])
def test_training_is_adamw_on_the_mean_loss_of_each_batch(clip: float | None, corpus: Corpus, tmp_path: Path) -> None:
    recipe = small_recipe(precision="float64", weight_decay=0.5, clip=clip, micro_batch=3)
    trained_weights, expected = weights(trained(recipe, corpus, tmp_path)), by_hand(recipe, corpus)
    # Rounding to float64 grows through AdamW's division where gradients are small.
    for name, weight in expected.items():
        torch.testing.assert_close(trained_weights[name], weight, rtol=1e-7, atol=1e-9)
    # Neither the decay nor the clipping could have been left out.
    for other in ({"weight_decay": 0.0}, {"clip": 0.01}):
        wrong = by_hand(recipe.model_copy(update=other), corpus)
        assert not torch.allclose(
            wrong["model.layers.0.mlp.up_proj.weight"], trained_weights["model.layers.0.mlp.up_proj.weight"]
        )


def test_small_pieces_of_a_batch_make_the_step_of_the_whole(corpus: Corpus, tmp_path: Path) -> None:
    runs = [trained(small_recipe(precision="float64", micro_batch=n), corpus, tmp_path / str(n)) for n in (8, 3, 1)]
    for run in runs[1:]:
        for name, weight in weights(runs[0]).items():
            torch.testing.assert_close(weights(run)[name], weight, rtol=1e-7, atol=1e-9)
        assert [record.loss for record in run.losses] == pytest.approx([record.loss for record in runs[0].losses])


def test_a_small_model_learns_more_than_how_often_a_token_comes(
    corpus: Corpus, validation: Corpus, tmp_path: Path
) -> None:
    run = trained(small_recipe(tokens=128 * 150), corpus, tmp_path, validation=validation)
    share = np.bincount(corpus.ids) / corpus.count
    entropy = -sum(p * math.log(p) for p in share if p)
    assert run.losses[0].loss == pytest.approx(math.log(320), abs=0.1)
    assert run.validation is not None
    assert run.validation < entropy - 1.5


def test_bfloat16_is_arithmetic_and_leaves_weights_in_float32(
    whole: Pretrained, corpus: Corpus, tmp_path: Path
) -> None:
    run = trained(small_recipe(precision="bfloat16"), corpus, tmp_path)
    assert {weight.dtype for weight in weights(run).values()} == {torch.float32}
    assert run.losses[0].loss == pytest.approx(whole.losses[0].loss, abs=0.02)
    assert run.losses[0].loss != whole.losses[0].loss


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_other_families_train_too(family: str, corpus: Corpus, tmp_path: Path) -> None:
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family == "qwen3":
        fields |= {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
    run = trained(small_recipe(model={"model_type": family, **fields}), corpus, tmp_path)
    assert run.losses[-1].loss < run.losses[0].loss


# --- twins ---


def test_equal_seeds_give_equal_weights_and_another_order_of_the_text_others(
    whole: Pretrained, corpus: Corpus, tmp_path: Path
) -> None:
    again = trained(small_recipe(), corpus, tmp_path / "again")  # without validation, which changes nothing
    assert same(weights(again), weights(whole))
    assert [record.loss for record in again.losses] == [record.loss for record in whole.losses]
    for name, settings in {"order": {"data_seed": 1}, "weights": {"seed": 1}}.items():
        assert not same(weights(trained(small_recipe(**settings), corpus, tmp_path / name)), weights(whole))


def test_twins_begin_alike_and_read_the_same(corpus: Corpus, tmp_path: Path) -> None:
    """One of them is changed after its weights are drawn; that is all the difference there is."""
    begun: dict[str, dict[str, Tensor]] = {}
    read: dict[str, list[Tensor]] = {"plain": [], "changed": []}

    def prepared(name: str) -> Callable[[PreTrainedModel], None]:
        def prepare(model: PreTrainedModel) -> None:
            assert not model.training
            begun[name] = {key: value.clone() for key, value in model.state_dict().items()}
            model.register_forward_pre_hook(
                lambda _module, _args, given: read[name].append(given["input_ids"]), with_kwargs=True
            )
            if name == "changed":
                torch.rand(7)  # whatever it draws
                model.model.layers[0].self_attn.scaling *= 2

        return prepare

    before = torch.get_rng_state()
    runs = [trained(small_recipe(), corpus, tmp_path / name, prepare=prepared(name)) for name in ("plain", "changed")]
    assert torch.equal(torch.get_rng_state(), before)
    assert same(begun["plain"], begun["changed"])
    assert all(torch.equal(first, two) for first, two in zip(read["plain"], read["changed"], strict=True))
    assert len(read["plain"]) == 12
    assert not same(weights(runs[0]), weights(runs[1]))


# --- interruption ---


@pytest.mark.parametrize("step", [1, 5, 8, 11])
def test_a_run_that_goes_on_ends_with_the_same_weights(
    step: int, whole: Pretrained, corpus: Corpus, validation: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(PulledPlugError):
        trained(small_recipe(), corpus, tmp_path, validation=validation, progress=StopAt(step))
    assert len(read_losses(tmp_path / "losses.jsonl")) == step
    assert steps_in(tmp_path) == [n for n in (10, 5) if n <= step]
    bar = StopAt()
    run = trained(small_recipe(), corpus, tmp_path, validation=validation, progress=bar)
    assert same(weights(run), weights(whole))
    assert untimed(run.losses) == untimed(whole.losses)
    assert (bar.seen, bar.total) == (128 * 12, 128 * 12)
    assert step < 5 or bar.messages[0] == f"step {step // 5 * 5}/12, from the checkpoint"


def test_dropout_goes_on_as_it_would_have(corpus: Corpus, tmp_path: Path) -> None:
    recipe = small_recipe(model=small_recipe().model | {"attention_dropout": 0.5})
    uninterrupted = trained(recipe, corpus, tmp_path / "whole")
    with pytest.raises(PulledPlugError):
        trained(recipe, corpus, tmp_path / "parts", progress=StopAt(7))
    torch.rand(3)
    assert same(weights(trained(recipe, corpus, tmp_path / "parts")), weights(uninterrupted))
    # It is there, and drawn from the seed.
    assert not same(
        weights(trained(recipe.model_copy(update={"seed": 1}), corpus, tmp_path / "o")), weights(uninterrupted)
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from dualform.lab.pretraining import pretrain
from tests.lab.setting import StopAt, small_corpus, small_recipe

folder = Path(sys.argv[1])
corpus = small_corpus(folder / "data")
pretrain(small_recipe(), corpus, folder / "run", device="cpu",
         progress=StopAt(8, lambda: os.kill(os.getpid(), signal.SIGKILL)))
"""


def test_a_killed_process_leaves_a_run_that_goes_on(whole: Pretrained, corpus: Corpus, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    folder = tmp_path / "run"
    # As if it had been killed while it wrote a line and a checkpoint.
    with (folder / "losses.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    (folder / ".checkpoint-10-abc" / "new").mkdir(parents=True)
    # The other process made its corpus itself: were it another, this would be another run.
    run = trained(small_recipe(), corpus, folder)
    assert same(weights(run), weights(whole))
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-10", "checkpoint-12", "losses.jsonl"]


def test_a_finished_run_is_read_and_not_run_again(whole: Pretrained, corpus: Corpus, validation: Corpus) -> None:
    bar = StopAt()
    again = trained(small_recipe(), corpus, whole.folder, validation=validation, progress=bar)
    assert bar.messages == ["step 12/12, from the checkpoint"]
    assert same(weights(again), weights(whole))
    assert again.losses == whole.losses
    assert not again.model.training


@pytest.mark.parametrize(
    "harm", ["model.safetensors", "optimiser.safetensors", "training.json", "missing model.safetensors"]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    harm: str, whole: Pretrained, corpus: Corpus, validation: Corpus, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    damaged = folder / "checkpoint-12" / harm.removeprefix("missing ")
    if harm.startswith("missing"):
        damaged.unlink()
    else:
        os.truncate(damaged, damaged.stat().st_size // 2)
    with pytest.warns(UserWarning, match=r"checkpoint-12 cannot be read .* trying the previous one"):
        run = trained(small_recipe(), corpus, folder, validation=validation)
    assert same(weights(run), weights(whole))
    assert steps_in(folder) == [12, 10]


def test_damaged_checkpoints_are_an_error(whole: Pretrained, corpus: Corpus, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    for step in (10, 12):
        (folder / f"checkpoint-{step}" / "training.json").unlink()
    with (
        pytest.warns(UserWarning, match="checkpoint"),
        pytest.raises(StorageError, match=r"no checkpoint in .* Remove the folder"),
    ):
        trained(small_recipe(), corpus, folder)


@pytest.mark.parametrize("content", ["", '{"step": 1}\n', "{}\n" * 12])
def test_losses_that_were_tampered_with_are_an_error(
    content: str, whole: Pretrained, corpus: Corpus, validation: Corpus, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole.folder, tmp_path / "run"))
    (folder / "losses.jsonl").write_text(content)
    with pytest.raises(
        StorageError, match=r"losses\.jsonl (should contain steps 1 to 12|contains a line that is not a loss)"
    ):
        trained(small_recipe(), corpus, folder, validation=validation)


def _noting(model: PreTrainedModel) -> None:
    model.config.note = "changed"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"recipe": {"learning_rate": 0.5}}, r"its recipe\.learning_rate is 0\.01, not 0\.5\. Choose another folder"),
        ({"recipe": {"seed": 1, "data_seed": 2}}, r"its recipe\.seed is 0, not 1"),
        ({"recipe": {"model": small_recipe().model | {"mlp_bias": True}}}, r"its recipe\.model\.mlp_bias is None"),
        ({"prepare": lambda model: None}, r"its prepared is False, not True"),
        ({"validation": None}, r"its validation is '[0-9a-f]+', not None"),
        ({"corpus": "validation"}, r"its corpus is '[0-9a-f]+', not '[0-9a-f]+'"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_its_first_difference(
    other: dict[str, object], message: str, whole: Pretrained, corpus: Corpus, validation: Corpus
) -> None:
    recipe = small_recipe(**other.pop("recipe", {}))  # type: ignore[arg-type]
    text = validation if other.pop("corpus", None) else corpus
    with pytest.raises(ConfigError, match=rf"checkpoint-12 belongs to another run: {message}"):
        trained(recipe, text, whole.folder, **({"validation": validation} | other))
    assert steps_in(whole.folder) == [12, 10]


def test_what_prepare_notes_in_the_config_is_part_of_the_run(corpus: Corpus, tmp_path: Path) -> None:
    trained(small_recipe(), corpus, tmp_path, prepare=_noting)
    with pytest.raises(ConfigError, match=r"its config\.note is 'changed', not None"):
        trained(small_recipe(), corpus, tmp_path, prepare=lambda model: None)

    def growing(model: PreTrainedModel) -> None:
        _noting(model)
        model.model.layers[0].self_attn.register_parameter("gate", torch.nn.Parameter(torch.ones(2)))

    with pytest.raises(ConfigError, match=r"prepared differently: model\.layers\.0\.self_attn\.gate differs"):
        trained(small_recipe(), corpus, tmp_path, prepare=growing)


@pytest.mark.parametrize("learned", [False, True])
def test_momentum_trains_goes_on_and_stays_in_the_checkpoint(
    learned: bool, whole: Pretrained, corpus: Corpus, tmp_path: Path
) -> None:
    def prepare(model: PreTrainedModel) -> None:
        apply_momentum(model, 0.3, learned=learned)

    uninterrupted = trained(small_recipe(), corpus, tmp_path / "whole", prepare=prepare)
    with pytest.raises(PulledPlugError):
        trained(small_recipe(), corpus, tmp_path / "parts", prepare=prepare, progress=StopAt(7))
    run = trained(small_recipe(), corpus, tmp_path / "parts", prepare=prepare)
    assert same(weights(run), weights(uninterrupted))
    assert not same({name: weights(run)[name] for name in weights(whole)}, weights(whole))
    lm = load_model(str(run.checkpoint), device="cpu")
    assert momentum_of(lm.model) == momentum_of(run.model)
    assert same(dict(lm.model.state_dict()), weights(run))
    with pytest.raises(ConfigError, match=r"its config\.dualform_momentum\.eta is 0\.3, not 0\.4"):
        trained(small_recipe(), corpus, run.folder, prepare=lambda model: apply_momentum(model, 0.4, learned=learned))


# --- what is left behind ---


def test_a_checkpoint_is_a_model_for_anyone(whole: Pretrained) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole.checkpoint)
    assert same(dict(model.state_dict()), weights(whole))
    tokenizer = AutoTokenizer.from_pretrained(whole.checkpoint)
    assert tokenizer("the miller").input_ids == whole.tokenizer("the miller").input_ids
    assert not [path for path in whole.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_losses_are_a_line_a_step(whole: Pretrained, corpus: Corpus, validation: Corpus) -> None:
    lines = [json.loads(line) for line in (whole.folder / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["tokens"] for line in lines] == [128 * n for n in range(1, 13)]
    assert [line["learning_rate"] for line in lines] == [small_recipe().rate(n) for n in range(12)]
    assert [line["step"] for line in lines if "validation" in line] == [4, 8, 12]
    assert all(line["gradient_norm"] > 0 and line["seconds"] > 0 for line in lines)
    assert whole.tokens == 128 * 12
    assert 0 < whole.median_step_seconds < whole.step_seconds < whole.seconds
    # The validation loss, the plain way.
    rows = gather_windows(validation.ids, spread_windows(validation.count, 16, 16), 16)
    with torch.no_grad():
        logits = whole.model(input_ids=rows[:, :-1]).logits
    expected = F.cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten())
    assert whole.validation == pytest.approx(float(expected), rel=1e-5)


def test_progress_and_tracker_are_told(corpus: Corpus, validation: Corpus, tmp_path: Path) -> None:
    logged: dict[int, dict[str, float]] = {}

    class Tracker:
        def log(self, step: int, values: Mapping[str, float]) -> None:
            logged[step] = dict(values)

    bar = StopAt()
    run = trained(small_recipe(), corpus, tmp_path, validation=validation, progress=bar, tracker=Tracker())
    words = r"step 4/12, loss \d\.\d{3}, validation \d\.\d{3}, [\d,]+ tokens/s, \d+ s left"
    assert [bool(re.fullmatch(words, outputs)) for outputs in bar.messages].count(True) == 1
    assert list(logged) == list(range(1, 13))
    assert [values["loss"] for values in logged.values()] == [record.loss for record in run.losses]
    assert [step for step, values in logged.items() if "validation_loss" in values] == [4, 8, 12]


def test_global_settings_are_left_as_they_were(corpus: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = (torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    trained(small_recipe(precision="bfloat16"), corpus, tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()) == before[1:]
    assert not accelerate.state.is_initialized()


# --- what can go wrong ---


def test_a_loss_that_is_no_number_is_told_with_its_step(corpus: Corpus, tmp_path: Path) -> None:
    recipe = small_recipe(
        learning_rate=1e3,
        clip=None,
        warmup=0.0,
        epsilon=1e-30,
        model={
            "model_type": "gpt2",
            "n_embd": 32,
            "n_layer": 1,
            "n_head": 2,
            "layer_norm_epsilon": 0.0,
            "initializer_range": 1e18,
        },
    )
    with pytest.raises(TrainingError, match=r"step 1: the loss is (nan|inf) at a learning rate of 1000\. Lower the"):
        trained(recipe, corpus, tmp_path)
    assert steps_in(tmp_path) == []


def test_a_gradient_that_is_no_number_is_told_and_moves_nothing(corpus: Corpus, tmp_path: Path) -> None:
    kept: list[PreTrainedModel] = []

    def prepare(model: PreTrainedModel) -> None:
        kept.append(model)
        calls = iter(range(99))
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.register_hook(lambda gradient: gradient * math.nan if next(calls) == 3 else gradient)

    with pytest.raises(TrainingError, match=r"step 4: the gradient's norm is nan"):
        trained(small_recipe(), corpus, tmp_path, prepare=prepare)
    assert all(torch.isfinite(weight).all() for weight in kept[0].parameters())
    assert len(read_losses(tmp_path / "losses.jsonl")) == 3


def test_a_full_disk_leaves_the_last_checkpoint(
    whole: Pretrained, corpus: Corpus, validation: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if "checkpoint-10" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(StorageError, match=r"cannot write .*checkpoint-10: the disk is full"):
        trained(small_recipe(), corpus, tmp_path, validation=validation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "losses.jsonl"]
    monkeypatch.undo()
    assert same(weights(trained(small_recipe(), corpus, tmp_path, validation=validation)), weights(whole))


def test_what_does_not_fit_together_is_told_before_training(corpus: Corpus, tmp_path: Path) -> None:
    other = replace(corpus, tokenizer=train_tokenizer(sentences(3), 300))
    for recipe, held_out, message in (
        (small_recipe(vocab_size=300), None, r"has 320 tokens, but the recipe's vocab_size is 300"),
        (
            small_recipe(batch_tokens=1 << 17, tokens=1 << 18),
            None,
            r"corpus of [\d,]+ tokens is shorter than one batch",
        ),
        (small_recipe(), other, r"the validation text has another tokenizer than the corpus"),
        (small_recipe(), replace(corpus, count=16), r"a corpus of 16 tokens has no window of 16 tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            trained(recipe, corpus, tmp_path / "run", validation=held_out)
    assert not (tmp_path / "run").exists()


def test_another_set_up_of_accelerate_is_told(corpus: Corpus, tmp_path: Path) -> None:
    accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    try:
        with pytest.raises(ConfigError, match="accelerate was configured differently in this process"):
            trained(small_recipe(), corpus, tmp_path)
        assert accelerate.state.is_initialized()  # it is another's
    finally:
        accelerate.state.AcceleratorState._reset_state()
    # What is left is the user's as well, and stays.
    state = accelerate.PartialState()
    try:
        trained(small_recipe(tokens=128), corpus, tmp_path)
        assert state.num_processes == 1
    finally:
        accelerate.PartialState._reset_state()


# --- several processes ---


def test_processes_that_do_not_know_of_each_other_are_told(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigError, match=r"2 processes were launched, but accelerate counts 1\. .*ACCELERATE_USE_CPU"):
        pretrain(small_recipe(), corpus, tmp_path)
    assert not accelerate.state.is_initialized()


SHARED = """
import sys
from pathlib import Path
import torch
from dualform.errors import ConfigError
from dualform.lab.corpus import build_corpus
from dualform.lab.pretraining import pretrain
from dualform.lab.sources import TextFiles
from tests.lab.setting import small_recipe

data, folder = Path(sys.argv[1]), Path(sys.argv[2])
train = build_corpus(TextFiles((data / "train.txt",)), data, 320)
validation = build_corpus(TextFiles((data / "validation.txt",)), data, train.tokenizer, name="validation")
recipe = small_recipe(precision="float64", micro_batch=3)
run = pretrain(recipe, train, folder, validation=validation, device="cpu")
again = pretrain(recipe, train, folder, validation=validation, device="cpu")
assert len(run.losses) == 12 and run.losses == again.losses
assert all(torch.equal(*pair) for pair in zip(run.model.parameters(), again.model.parameters(), strict=True))
try:
    pretrain(small_recipe(batch_tokens=48, length=16), train, folder, device="cpu")
except ConfigError as error:
    print(error)
"""


def test_two_processes_train_the_model_of_one(corpus: Corpus, validation: Corpus, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `torchrun --nproc_per_node 2` sets, without its own start.
    settings = {
        "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    data = corpus.path.parent
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(data), str(tmp_path / "two")],
            env=os.environ | settings | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all("a batch of 3 sequences cannot be divided equally among 2 processes" in words for words in outputs)
    first = trained(small_recipe(precision="float64", micro_batch=3), corpus, tmp_path / "one", validation=validation)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "checkpoint-12", dtype=torch.float64)
    for name, weight in weights(first).items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-7, atol=1e-9)
    two = read_losses(tmp_path / "two" / "losses.jsonl")
    assert [record.loss for record in two] == pytest.approx([record.loss for record in first.losses])
    assert two[-1].validation == pytest.approx(first.validation)


def test_the_shipped_tiny_recipe_trains(corpus: Corpus, tmp_path: Path) -> None:
    recipe = load_recipe("tiny", tokens=512 * 4)
    run = trained(recipe, corpus, tmp_path)
    assert run.losses[-1].loss < run.losses[0].loss
