import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open

from dualform.errors import ConfigError, ModelError, StorageError
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.export import checkpoint
from dualform.models.export.checkpoint import adapter_applied, write_adapter, write_checkpoint
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.anatomy import row_axis
from dualform.models.structure.bias import output_bias
from dualform.ops.low_rank import low_rank
from tests.models.reference import BY_NAME, wrapped
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(5, 30)[None]
RANK, FULL = 3, 32
CARD = "---\nlibrary_name: transformers\n---\n\n# A card — ünd more\n"

FAMILIES = ("llama", "gpt2", "gemma3", "gpt_neox", "opt", "qwen3", "mistral", "phi3", "falcon")

# Reads folders with transformers and peft alone, in a process that has never seen this library.
READER = """
import json, sys, warnings
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
jobs, out = json.loads(sys.argv[1]), sys.argv[2]
ids, tensors = torch.arange(5, 30)[None], {}
for name, folder in jobs["checkpoints"].items():
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    wrong = [f"{kind}: {keys}" for kind, keys in found.items() if keys]
    assert not wrong, f"{name}: {wrong}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tensors[f"{name}/ids"] = torch.tensor(tokenizer("a warm film", add_special_tokens=False).input_ids)
    with torch.no_grad():
        tensors[name] = torch.log_softmax(model(ids).logits.float(), -1)
from peft import PeftModel
for name, (base, folder) in jobs["adapters"].items():
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        # Such as one about weights of the adapter that were not found; that it cannot be merged is known.
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed but")
        adapted = PeftModel.from_pretrained(model, folder).eval()
    with torch.no_grad():
        tensors[name] = torch.log_softmax(adapted(ids).logits.float(), -1)
assert not [name for name in sys.modules if name.startswith("dualform")]
save_file(tensors, out)
"""


def log_probabilities(model):
    with torch.no_grad():
        return torch.log_softmax(model(IDS).logits.float(), -1)


def random_deltas(lm, bias):
    """A change of every W_O: some as a whole, some of a few output features, one in two parts."""
    generator = torch.Generator().manual_seed(5)
    deltas = []
    for i, layer in enumerate(lm.anatomy.layers):
        module = lm.model.get_submodule(layer.W_O)
        axis, shape = row_axis(module), list(module.weight.shape)
        index = None if i % 2 == 0 else torch.arange(0, shape[axis], 3)
        shape[axis] = shape[axis] if index is None else len(index)
        deltas.append(WeightDelta(f"{layer.W_O}.weight", axis, index, 0.2 * torch.randn(shape, generator=generator)))
        if bias:
            size = module.weight.shape[axis]
            deltas.append(WeightDelta(f"{layer.W_O}.bias", 0, None, 0.5 * torch.randn(size, generator=generator)))
    deltas.append(deltas[0])
    return tuple(deltas)


def truncated(lm, deltas, rank):
    """The same changes, each weight's whole change cut to a rank."""
    results = []
    for layer in lm.anatomy.layers:
        module = lm.model.get_submodule(layer.W_O)
        name = f"{layer.W_O}.weight"
        total = torch.zeros(module.weight.shape)
        for change in deltas:
            if change.parameter == name:
                total = change.added_to(total)
        transposed = row_axis(module) == 1
        cut = low_rank(total.T if transposed else total, rank).product
        results.append(WeightDelta(name, row_axis(module), None, cut.T if transposed else cut))
    return (*results, *(change for change in deltas if change.parameter.endswith(".bias")))


@dataclass
class Written:
    """Folders of all families, and what a fresh process read out of them."""

    folders: dict[str, Path]
    models: dict[str, Any]
    deltas: dict[str, tuple[WeightDelta, ...]]
    expected: dict[str, torch.Tensor]
    read: dict[str, torch.Tensor]
    kept: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written")
    result = Written({}, {}, {}, {}, {}, {})
    adapters = {}
    for family in FAMILIES:
        lm = LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family)
        before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
        config = json.dumps(lm.model.config.to_dict(), default=str)
        pointers = {name: weight.data_ptr() for name, weight in lm.model.named_parameters()}
        deltas = random_deltas(lm, bias=output_bias(lm.model, lm.anatomy).kind != "none")
        result.models[family], result.deltas[family] = lm, deltas
        result.folders[family] = write_checkpoint(lm, deltas, root / family, CARD)
        with applied(lm.model, deltas):
            result.expected[family] = log_probabilities(lm.model)
        if family in ("llama", "gpt2", "mistral", "gpt_neox"):
            base = root / f"{family}-base"
            write_checkpoint(lm, (), base, CARD)
            for rank in (RANK, FULL):
                name = f"{family}/{rank}"
                adapter = write_adapter(lm, deltas, root / f"{family}-{rank}", rank, CARD, str(base))
                result.folders[name], result.kept[name] = adapter.folder, dict(adapter.kept)
                adapters[name] = (str(base), str(adapter.folder))
                with applied(lm.model, deltas if rank == FULL else truncated(lm, deltas, rank)):
                    result.expected[name] = log_probabilities(lm.model)
        assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
        assert {name: weight.data_ptr() for name, weight in lm.model.named_parameters()} == pointers
        assert json.dumps(lm.model.config.to_dict(), default=str) == config
    jobs = {"checkpoints": {name: str(result.folders[name]) for name in FAMILIES}, "adapters": adapters}
    out = root / "read.safetensors"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", READER, json.dumps(jobs), str(out)],
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    with safe_open(out, framework="pt") as file:
        result.read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_process_reads_the_changed_model_from_the_folder(written, family):
    torch.testing.assert_close(written.read[family], written.expected[family], rtol=1e-5, atol=1e-5)
    # The change is one that shows.
    base = log_probabilities(written.models[family].model)
    assert (written.read[family] - base).abs().max() > 0.1
    ids = tiny_tokenizer()("a warm film", add_special_tokens=False).input_ids
    assert written.read[f"{family}/ids"].tolist() == ids


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gpt_neox"])
@pytest.mark.parametrize("rank", [RANK, FULL])
def test_a_fresh_process_reads_the_cut_change_from_the_adapter(written, family, rank):
    name = f"{family}/{rank}"
    torch.testing.assert_close(written.read[name], written.expected[name], rtol=1e-5, atol=1e-5)
    kept = written.kept[name]
    assert set(kept) == {layer.W_O for layer in written.models[family].anatomy.layers}
    assert all(share > 0.999999 if rank == FULL else 0.1 < share < 0.9 for share in kept.values())
    if rank == RANK:
        # A rank that is too small is seen to lose something.
        assert (written.read[name] - written.read[family]).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_is_an_ordinary_one(written, family):
    text = (written.folders[family] / "config.json").read_text()
    assert "dualform" not in text
    assert "quantization" not in text
    config = json.loads(text)
    lm = written.models[family]
    form = output_bias(lm.model, lm.anatomy)
    assert config["architectures"] == [type(lm.model).__name__]
    if form.switch is not None:
        assert config[form.switch] is True
    files = {path.name for path in written.folders[family].iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files
    assert (written.folders[family] / "README.md").read_text(encoding="utf-8") == CARD


def tensors_of(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_biases_that_come_with_the_switch_are_zeros_and_the_folded_ones_are_not(written):
    lm = written.models["llama"]
    form = output_bias(lm.model, lm.anatomy)
    tensors = tensors_of(written.folders["llama"])
    assert form.others
    assert not any(tensors[name].any() for name in form.others)
    assert all(tensors[name].all() for name in form.new)


def test_without_a_change_of_a_bias_no_bias_is_written(tmp_path):
    lm = wrapped(BY_NAME["llama"])
    folder = write_checkpoint(lm, random_deltas(lm, bias=False), tmp_path / "out", CARD)
    assert not any("bias" in name for name in tensors_of(folder))
    assert json.loads((folder / "config.json").read_text())["attention_bias"] is False


def test_tied_embeddings_are_written_once_and_a_change_of_one_is_one_of_both(tmp_path):
    lm = wrapped(BY_NAME["gemma3"])
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    delta = WeightDelta("model.embed_tokens.weight", 0, None, torch.ones(lm.model.lm_head.weight.shape))
    tensors = tensors_of(write_checkpoint(lm, (delta,), tmp_path / "out", CARD))
    assert "lm_head.weight" not in tensors
    assert torch.equal(tensors["model.embed_tokens.weight"], lm.model.lm_head.weight + 1)


def test_half_precision_is_kept_and_sums_are_taken_in_float32(tmp_path):
    lm = LanguageModel.wrap(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer(), "llama")
    deltas = random_deltas(lm, bias=True)
    folder = write_checkpoint(lm, deltas, tmp_path / "out", CARD)
    tensors = tensors_of(folder)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    weight = lm.model.get_parameter(deltas[2].parameter)
    assert torch.equal(tensors[deltas[2].parameter], deltas[2].added_to(weight))


def test_the_files_can_be_read_by_whom_the_folder_lets_in(written):
    for family in ("llama", f"llama/{RANK}"):
        folder = written.folders[family]
        modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
        assert set(modes.values()) == {folder.stat().st_mode & 0o666}, modes


def test_the_adapters_settings_say_what_it_belongs_to(written):
    settings = json.loads((written.folders[f"gpt2/{RANK}"] / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"].endswith("gpt2-base")
    assert (settings["r"], settings["lora_alpha"], settings["fan_in_fan_out"]) == (RANK, RANK, True)
    assert settings["target_modules"] == ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]
    assert settings["lora_bias"] is True
    plain = json.loads((written.folders[f"mistral/{RANK}"] / "adapter_config.json").read_text())
    assert plain["lora_bias"] is plain["fan_in_fan_out"] is False
    assert {path.name for path in written.folders[f"gpt2/{RANK}"].iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def write(kind, lm, folder, overwrite=False, deltas=None, check=lambda written: None):
    deltas = random_deltas(lm, bias=False) if deltas is None else deltas
    if kind == "checkpoint":
        return write_checkpoint(lm, deltas, folder, CARD, overwrite, check)
    return write_adapter(lm, deltas, folder, RANK, CARD, "base", overwrite, check).folder


KINDS = pytest.mark.parametrize("kind", ["checkpoint", "adapter"])


def fail_in_the_middle(monkeypatch, error):
    """The card is written last: by then the weights are there."""
    original = Path.write_text

    def write_text(path, *args, **kwargs):
        if path.name == "README.md":
            assert any(other.suffix == ".safetensors" for other in path.parent.iterdir())
            raise error
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", write_text)


@KINDS
@pytest.mark.parametrize("error", [RuntimeError("in the middle"), KeyboardInterrupt("in the middle")])
def test_an_interrupted_write_leaves_nothing(kind, error, tmp_path, monkeypatch):
    lm = wrapped(BY_NAME["llama"])
    fail_in_the_middle(monkeypatch, error)
    with pytest.raises(type(error), match="in the middle"):
        write(kind, lm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@KINDS
def test_temporary_folders_of_killed_processes_are_removed(kind, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    prefix = checkpoint._leftover_prefix(tmp_path / "out")
    for name in (f"{prefix}{dead.pid}-abc", f"{prefix}{os.getpid()}-abc", f".out-elsewhere-{dead.pid}-abc", ".other"):
        (tmp_path / name / "new").mkdir(parents=True)
    write(kind, wrapped(BY_NAME["llama"]), tmp_path / "out")
    # Those of processes that live, or of another machine, stay.
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        f"{prefix}{os.getpid()}-abc",
        f".out-elsewhere-{dead.pid}-abc",
        ".other",
    }


@KINDS
def test_an_interrupted_overwrite_leaves_the_old_folder_as_it_was(kind, tmp_path, monkeypatch):
    lm = wrapped(BY_NAME["llama"])
    folder = write(kind, lm, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        fail_in_the_middle(patch, RuntimeError("in the middle"))
        with pytest.raises(RuntimeError, match="in the middle"):
            write(kind, lm, folder, overwrite=True, deltas=random_deltas(lm, bias=True))
    rename = Path.rename

    def fails_at_last(path, target):
        if Path(target) == folder and path.name == "new":
            raise KeyboardInterrupt("at the last moment")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_at_last)
    with pytest.raises(KeyboardInterrupt, match="at the last moment"):
        write(kind, lm, folder, overwrite=True, deltas=random_deltas(lm, bias=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@KINDS
def test_an_existing_folder_is_replaced_completely_and_only_with_overwrite(kind, tmp_path):
    lm = wrapped(BY_NAME["llama"])
    folder = write(kind, lm, tmp_path / "deep" / "out")
    (folder / "model-00002-of-00002.safetensors").write_text("from before")
    with pytest.raises(ConfigError, match=rf"{folder} already exists.*overwritten"):
        write(kind, lm, folder)
    assert (folder / "model-00002-of-00002.safetensors").exists()
    assert write(kind, lm, folder, overwrite=True, deltas=random_deltas(lm, bias=True)) == folder
    assert not (folder / "model-00002-of-00002.safetensors").exists()
    assert list(folder.parent.iterdir()) == [folder]


@KINDS
@pytest.mark.parametrize("stray", ["notes.txt", "model_notes.txt", "checkpoint-5/config.json", "optimizer.pt"])
def test_what_is_no_part_of_a_checkpoint_is_never_overwritten(kind, stray, tmp_path):
    lm = wrapped(BY_NAME["llama"])
    folder = write(kind, lm, tmp_path / "out")
    (folder / stray).parent.mkdir(exist_ok=True)
    (folder / stray).write_text("of the user's")
    with pytest.raises(ConfigError, match=rf"out contains {stray.split('/')[0]}, which is not part of a checkpoint"):
        write(kind, lm, folder, overwrite=True)
    assert (folder / stray).read_text() == "of the user's"


@KINDS
@pytest.mark.parametrize("names", [["LICENSE", "NOTICE"], ["config.json", "LICENSE", "README.md"]])
def test_a_folder_without_weights_is_never_overwritten(kind, names, tmp_path):
    folder = tmp_path / "program"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("of the user's")
    with pytest.raises(ConfigError, match=r"program is not a folder with a .* and weights"):
        write(kind, wrapped(BY_NAME["llama"]), folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@KINDS
def test_what_fails_its_check_does_not_replace_what_is_there(kind, tmp_path):
    lm = wrapped(BY_NAME["llama"])
    folder = write(kind, lm, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def check(unfinished):
        assert (unfinished / "README.md").exists()
        raise ModelError("no good")

    with pytest.raises(ModelError, match="no good"):
        write(kind, lm, folder, overwrite=True, deltas=random_deltas(lm, bias=True), check=check)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


@KINDS
def test_an_empty_folder_is_filled_and_one_with_other_things_is_never_replaced(kind, tmp_path):
    lm = wrapped(BY_NAME["llama"])
    (tmp_path / "empty").mkdir()
    assert any(write(kind, lm, tmp_path / "empty").iterdir())
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"home is not a folder with a config\.json or adapter_config\.json"):
        write(kind, lm, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match=r"thesis\.txt already exists"):
        write(kind, lm, tmp_path / "home" / "thesis.txt")


def test_the_base_models_own_folder_is_never_written_to(tmp_path):
    lm = wrapped(BY_NAME["llama"])
    folder = write("checkpoint", lm, tmp_path / "base")
    own = LanguageModel(str(folder), lm.model, lm.tokenizer, lm.anatomy, lm.route, ())
    with pytest.raises(ConfigError, match=r"base is the base model's own folder"):
        write("checkpoint", own, tmp_path / "base", overwrite=True)


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"\. is, or contains, the current folder"):
        write("checkpoint", wrapped(BY_NAME["llama"]), Path())
    assert write("checkpoint", wrapped(BY_NAME["llama"]), Path("out")) == Path("out")


@KINDS
def test_a_folder_created_by_another_process_is_not_replaced(kind, tmp_path, monkeypatch):
    lm = wrapped(BY_NAME["llama"])
    folder = tmp_path / "out"
    sync = checkpoint._sync

    def another_is_faster(path):
        folder.mkdir(exist_ok=True)
        (folder / "theirs").touch()
        sync(path)

    monkeypatch.setattr(checkpoint, "_sync", another_is_faster)
    with pytest.raises(ConfigError, match=r"out was created by another process"):
        write(kind, lm, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


@KINDS
def test_a_place_that_cannot_be_written_to_is_named(kind, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is not writable\. Choose another folder"):
        write(kind, wrapped(BY_NAME["llama"]), tmp_path / "file" / "out")


@KINDS
def test_a_full_disk_is_named_in_the_error(kind, tmp_path, monkeypatch):
    # safetensors tells of it in words only.
    words = f"Error while serializing: I/O error: No space left on device (os error {errno.ENOSPC})"

    def full(*args, **kwargs):
        raise SafetensorError(words)

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    with pytest.raises(StorageError, match=r"cannot write .*out: the disk is full"):
        write(kind, wrapped(BY_NAME["llama"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    words = "a tensor is not contiguous"
    with pytest.raises(SafetensorError, match="not contiguous"):
        write(kind, wrapped(BY_NAME["llama"]), tmp_path / "out")


class TestModelsThatCannotBeWritten:
    def lm(self, family="llama"):
        return LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), f"tiny-{family}")

    def refused(self, lm, folder, match, deltas=()):
        with pytest.raises(ModelError, match=match):
            write_checkpoint(lm, deltas, folder / "out", CARD)
        assert list(folder.iterdir()) == []

    def test_a_bias_that_checkpoints_of_the_family_cannot_hold(self, tmp_path):
        lm = wrapped(BY_NAME["mistral"])
        words = r"MistralForCausalLM cannot store model\.layers\.0\.self_attn\.o_proj\.bias.*Leave biases out"
        self.refused(lm, tmp_path, words, random_deltas(lm, bias=True))

    def test_a_bias_that_the_switch_does_not_bring(self, tmp_path):
        change = WeightDelta("model.layers.0.mlp.up_proj.bias", 0, None, torch.ones(64))
        self.refused(
            wrapped(BY_NAME["llama"]), tmp_path, r"cannot store model\.layers\.0\.mlp\.up_proj\.bias", (change,)
        )

    @pytest.mark.parametrize("name", ["model.layers.9.self_attn.o_proj.bias", "model.norm.bias", "nonsense"])
    def test_a_parameter_that_does_not_exist(self, tmp_path, name):
        change = WeightDelta(name, 0, None, torch.ones(32))
        self.refused(wrapped(BY_NAME["llama"]), tmp_path, rf"LlamaForCausalLM has no parameter '{name}'", (change,))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn])
    def test_quantized_weights(self, tmp_path, dtype):
        lm = self.lm()
        projection = lm.model.model.layers[0].self_attn.o_proj
        projection.weight = torch.nn.Parameter(torch.zeros(32, 32).to(dtype), requires_grad=False)
        words = rf"tiny-llama is quantized: model\.layers\.0\.self_attn\.o_proj\.weight is {dtype}\. .*dequantized"
        self.refused(lm, tmp_path, words)

    def test_a_tensor_of_a_kind_of_its_own(self, tmp_path):
        class Packed(torch.Tensor):
            pass

        lm = self.lm()
        weight = torch.nn.Parameter(torch.zeros(32, 32).as_subclass(Packed), requires_grad=False)
        lm.model.model.layers[0].self_attn.o_proj.weight = weight
        self.refused(lm, tmp_path, r"o_proj\.weight is Packed")

    def test_a_quantizer_at_work_but_not_one_that_has_unpacked_everything(self, tmp_path):
        class Settings:
            quant_method = "bitsandbytes"
            dequantize = False

        class Quantizer:
            quantization_config = Settings()

        lm = self.lm()
        lm.model.hf_quantizer = Quantizer()
        self.refused(lm, tmp_path, r"tiny-llama is quantized \(bitsandbytes\)\. Load the model dequantized")
        Settings.dequantize = True
        lm.model.config.quantization_config = {"quant_method": "gguf"}
        folder = write_checkpoint(lm, (), tmp_path / "out", CARD)
        assert "quant" not in (folder / "config.json").read_text()
        assert lm.model.config.quantization_config == {"quant_method": "gguf"}

    def test_weights_that_are_not_in_memory(self, tmp_path):
        lm = self.lm()
        lm.model.model.layers[0].self_attn.o_proj.to("meta")
        self.refused(lm, tmp_path, r"o_proj\.weight of tiny-llama is offloaded")

    def test_modules_that_the_class_does_not_have(self, tmp_path):
        lm = self.lm()
        lm.model.extra = torch.nn.Linear(2, 2)
        self.refused(lm, tmp_path, r"not those of an ordinary LlamaForCausalLM: .*extra\.weight.*Load the model again")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_in_memory_equals_its_weight_change_and_changes_no_weight(family):
    lm = wrapped(BY_NAME[family])
    deltas = random_deltas(lm, bias=True)
    rank = min(lm.model.get_submodule(lm.anatomy.layers[0].W_O).weight.shape)
    ids = torch.arange(12)[None]
    before = {name: weight.clone() for name, weight in lm.model.state_dict().items()}

    def logits():
        with torch.no_grad():
            return lm.model(input_ids=ids, use_cache=False).logits

    plain = logits()
    with applied(lm.model, deltas):
        expected = logits()
    with adapter_applied(lm.model, deltas, rank):
        actual = logits()
        assert all(torch.equal(weight, before[name]) for name, weight in lm.model.state_dict().items())
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    with adapter_applied(lm.model, deltas, 1):
        assert not torch.allclose(logits(), expected, atol=1e-3)
    assert torch.equal(logits(), plain)


class TestChangesThatAnAdapterCannotHold:
    def test_no_change_at_all(self, tmp_path):
        with pytest.raises(ConfigError, match="there is no change to write"):
            write("adapter", wrapped(BY_NAME["llama"]), tmp_path / "out", deltas=())

    def test_a_change_of_no_linear(self, tmp_path):
        change = WeightDelta("model.norm.weight", 0, None, torch.ones(32))
        with pytest.raises(
            ModelError, match=r"model\.norm\.weight is not a weight or bias of a linear.*Write a checkpoint"
        ):
            write("adapter", wrapped(BY_NAME["llama"]), tmp_path / "out", deltas=(change,))

    def test_linears_of_two_orientations(self, tmp_path):
        lm = wrapped(BY_NAME["gpt2"])
        deltas = (*random_deltas(lm, bias=False), WeightDelta("lm_head.weight", 0, None, torch.ones(384, 32)))
        with pytest.raises(ModelError, match=r"lm_head, transformer\.h\.0.* are stored transposed and others are not"):
            write("adapter", lm, tmp_path / "out", deltas=deltas)

    def test_a_rank_below_one(self, tmp_path):
        lm = wrapped(BY_NAME["llama"])
        with pytest.raises(ConfigError, match="rank is 0"):
            write_adapter(lm, random_deltas(lm, bias=False), tmp_path / "out", 0, CARD, "base")

    def test_a_change_of_only_a_bias_has_a_zero_weight_change(self, tmp_path):
        lm = wrapped(BY_NAME["opt"])
        deltas = tuple(change for change in random_deltas(lm, bias=True) if change.parameter.endswith(".bias"))
        adapter = write_adapter(lm, deltas, tmp_path / "out", RANK, CARD, "base")
        assert all(share != share for share in adapter.kept.values())
        with safe_open(adapter.folder / "adapter_model.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert all(tensor.any() == name.endswith(".bias") for name, tensor in tensors.items())
