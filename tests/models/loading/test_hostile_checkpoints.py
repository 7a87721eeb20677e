"""Damaged and hostile checkpoints end in one message that names file and cause: no traceback, hang or code run."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dualform.errors import ConfigError, DualformError, ModelError
from dualform.models.export.licence import licence_of
from dualform.models.loading.checkpoint_files import check_config, gguf_weights
from dualform.models.loading.identity import model_identity
from dualform.models.loading.load import load_model
from dualform.models.loading.meta import meta_model
from tests.tiny import save_tiny, tiny_model

Damage = Callable[[Path], object]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def written(name: str, text: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def in_place_of(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def header(change: Callable[[dict[str, Any]], object] | bytes, length: int | None = None) -> Damage:
    """Another header for the safetensors file."""

    def damage(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        (n,) = struct.unpack("<Q", raw[:8])
        if isinstance(change, bytes):
            new = change
        else:
            tensors = json.loads(raw[8 : 8 + n])
            change(tensors)
            new = json.dumps(tensors).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new) if length is None else length) + new + raw[8 + n :])

    return damage


def offsets(*pair: Any) -> Damage:
    return header(lambda tensors: tensors["model.norm.weight"].update(data_offsets=list(pair)))


def index(weight_map: Any, keep: bool = False) -> Damage:
    def damage(folder: Path) -> None:
        if not keep:
            (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return damage


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def tokenizer(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def all_nan(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.fill_(torch.nan)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


# What is wrong with config.json, and what the message has to name.
CONFIGS: dict[str, tuple[Damage, str | None]] = {
    "no heads": (config(num_attention_heads=0), "num_attention_heads is 0"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "layers below zero": (config(num_hidden_layers=-3), "num_hidden_layers is -3"),
    "a million layers": (config(num_hidden_layers=1_000_000), "num_hidden_layers is 1000000"),
    "more layers than there are": (config(num_hidden_layers=9_000), "describes 9,000 layers, but its weights have 2"),
    "a huge width": (config(hidden_size=1_000_000), "describes .* weights, but the files contain"),
    "a huge vocabulary": (config(vocab_size=1_000_000_000), "describes .* weights, but the files contain"),
    "heads that do not divide": (config(num_attention_heads=3), "not a multiple of the number of attention heads"),
    "text for a number": (config(hidden_size="thirty-two"), "hidden_size is 'thirty-two'.*whole number"),
    "a fraction": (config(num_hidden_layers=1.5), "num_hidden_layers is 1.5.*whole number"),
    "true for a number": (config(num_key_value_heads=True), "num_key_value_heads is True.*whole number"),
    "a list for a number": (config(vocab_size=["x"]), "vocab_size is .*whole number"),
    "a mapping for a number": (config(rms_norm_eps={"a": 1}), None),
    "NaN": (config(rms_norm_eps=float("nan")), "rms_norm_eps is nan.*finite"),
    "infinity": (config(rope_theta=float("inf")), "rope_theta is inf.*finite"),
    "a number beyond floats": (written("config.json", '{"model_type": "llama", "rms_norm_eps": 1e999}'), "finite"),
    "rotation by zero": (config(rope_theta=0), "rope_theta is 0"),
    "5,000 digits": (written("config.json", '{"vocab_size": ' + "9" * 5000 + "}"), "not a valid JSON file"),
    "4,000 digits": (written("config.json", '{"vocab_size": ' + "9" * 4000 + "}"), "vocab_size is"),
    "nested too deeply": (written("config.json", "[" * 100_000), "nested too deeply"),
    "nested mappings": (written("config.json", '{"a":' * 100_000), "nested too deeply"),
    "half a surrogate": (written("config.json", '{"model_type": "llama", "name": "\\ud800"}'), "surrogate"),
    "not text": (written("config.json", b"\x80\x81\xff" * 50), "not a valid JSON file: .*UTF-8"),
    "an unknown dtype": (config(dtype="float99"), "dtype is 'float99'"),
    "a dtype that is none": (config(torch_dtype="nn"), "torch_dtype is 'nn'"),
    "a number as dtype": (config(dtype=7), "dtype is 7"),
    "an unknown quantization": (
        config(quantization_config={"quant_method": "magic", "bits": 4}),
        "quantized by a method .*'magic'",
    ),
    "a quantization without a method": (config(quantization_config={"bits": 4}), "quantized by a method"),
    "a quantization that is text": (config(quantization_config="4bit"), "quantization_config is '4bit'"),
    "no type": (config(model_type=None), "model"),
    "a type that is a list": (config(model_type=["llama"]), None),
    "an unknown type": (config(model_type="gpt99"), "gpt99"),
    "code on the hub for attention": (config(attn_implementation="someone/kernel"), "names code on the hub"),
    "a pickle for weights": (config(transformers_weights="adapter_model.bin"), "transformers_weights"),
    "weights elsewhere": (config(transformers_weights="../model.safetensors"), "transformers_weights"),
    "an unknown rotation": (
        config(rope_scaling={"rope_type": "magic", "factor": 2.0}),
        "its config cannot be used: .*magic",
    ),
    "an unknown activation": (config(hidden_act="magic"), "magic"),
    "a folder": (in_place_of("config.json", lambda path: path.mkdir()), "config.json is a folder"),
    "a pipe": (in_place_of("config.json", os.mkfifo), "config.json is a device or a pipe"),
    "endless": (in_place_of("config.json", lambda path: path.symlink_to("/dev/zero")), "is a device or a pipe"),
    "a link to itself": (in_place_of("config.json", loop), "config.json cannot be read: .*symbolic link"),
}
FILES: dict[str, tuple[Damage, str | None]] = {
    "a header longer than the file": (header(b"{}", 1 << 62), f"{WEIGHTS}: .*header"),
    "a header that is no JSON": (header(b"\x00" * 64), f"{WEIGHTS}: .*header"),
    "a header of names alone": (header(b'{"a": {"dtype": "F32"}}'), f"{WEIGHTS}: .*header"),
    "offsets beyond the end": (offsets(0, 1 << 62), f"{WEIGHTS}: "),
    "offsets below zero": (offsets(-8, 120), f"{WEIGHTS}: "),
    "offsets in reverse": (offsets(128, 0), f"{WEIGHTS}: "),
    "offsets that are text": (offsets("a", "b"), f"{WEIGHTS}: "),
    "a shape beyond integers": (
        header(lambda tensors: tensors["model.norm.weight"].update(shape=[1 << 63, 1 << 63])), f"{WEIGHTS}: "),
    "an unknown dtype in the file": (
        header(lambda tensors: tensors["model.norm.weight"].update(dtype="F99")), f"{WEIGHTS}: "),
    "an empty file": (written(WEIGHTS, ""), f"{WEIGHTS}: .*header"),
    "a picture": (written(WEIGHTS, b"\x89PNG\r\n\x1a\n" + bytes(500)), f"{WEIGHTS}: "),
    "a pipe for weights": (in_place_of(WEIGHTS, os.mkfifo), f"{WEIGHTS} is a device or a pipe"),
    "a folder for weights": (in_place_of(WEIGHTS, lambda path: path.mkdir()), f"{WEIGHTS} is a folder"),
    "a link that leads nowhere": (in_place_of(WEIGHTS, lambda path: path.symlink_to("gone")), WEIGHTS),
    "an index that names a pickle": (index({"lm_head.weight": "pytorch_model.bin"}), "names 'pytorch_model.bin'"),
    "an index that leads elsewhere": (index({"lm_head.weight": "../model.safetensors"}), "names '../model"),
    "an index with a path": (index({"lm_head.weight": "/etc/passwd.safetensors"}), "names '/etc"),
    "an index that names numbers": (index({"lm_head.weight": 7}), "names 7"),
    "an index without a file": (index({"lm_head.weight": "gone.safetensors"}), "missing .gone.safetensors"),
    "an index that is empty": (index({}), "no weight_map"),
    "an index that is a list": (index([1]), "no weight_map"),
    "a tokenizer that is no JSON": (written("tokenizer.json", "{no"), "its tokenizer cannot be used: Expect"),
    "a tokenizer of another shape": (written("tokenizer.json", '{"model": 7}'), None),
    "a tokenizer with a bad pattern": (
        tokenizer(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated",
                                 "invert": False}), None),
    "a pipe for a tokenizer": (in_place_of("tokenizer.json", os.mkfifo), "tokenizer.json is a device or a pipe"),
    "a folder for a tokenizer": (
        in_place_of("tokenizer.json", lambda path: path.mkdir()), "tokenizer.json is a folder"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), None),
    "a tokenizer's config in pieces": (written("tokenizer_config.json", '{"tokenizer_class": 7'), None),
    "code for an unknown type": (
        config(model_type="gpt99", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}),
        "needs Python code .*--trust-remote-code"),
}  # fmt: skip
# Seen only once the weights are in memory.
LOADED: dict[str, tuple[Damage, str | None]] = {
    "all weights NaN": (weights(all_nan), r"21 of its weights contain NaN .* \(model.embed_tokens.weight, "),
    "one weight infinite": (
        weights(lambda tensors: tensors["model.norm.weight"].fill_(torch.inf)), "1 of its weights .*model.norm.weight"),
    "layers too many": (
        config(num_hidden_layers=1), r"have 2 layers in model.layers, but .*num_hidden_layers: 1, so 9"),
    "a layer too few": (config(num_hidden_layers=3), "9 weights of LlamaForCausalLM are missing"),
    "a width of its own": (config(intermediate_size=48), r"shape \(32, 64\) in the file and \(32, 48\) by the config"),
    "keys that do not divide": (config(num_key_value_heads=3), None),
}  # fmt: skip


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message.isprintable(), message
    assert len(message) < 1200
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("case", [*CONFIGS, *FILES])
def test_it_is_refused_in_one_line_wherever_a_model_is_named(case: str, folder: Path) -> None:
    damage, cause = {**CONFIGS, **FILES}[case]
    damage(folder)
    for read in (load_model, meta_model):
        with pytest.raises(ModelError, match=cause) as caught:
            read(str(folder))
        assert str(folder) in one_line(caught.value)


@pytest.mark.parametrize("case", LOADED)
def test_it_is_refused_once_it_is_loaded(case: str, folder: Path) -> None:
    damage, cause = LOADED[case]
    damage(folder)
    with pytest.raises(ModelError, match=cause) as caught:
        load_model(str(folder))
    assert str(folder) in one_line(caught.value)


NAMES = ["", "  ", "x" * 5000, "a/" * 3000, "~nosuch/model", "a\0b", "a\nb/c", "\ud800", "\x1b[2J", "./" + "y" * 300,
         "..", "/dev/zero", "/dev/null", "/dev/zero.gguf", "a//b", "-rf"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("read", [load_model, meta_model])
def test_a_name_that_no_model_can_have_is_refused(name: str, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DualformError) as caught:
        read(name)
    one_line(caught.value)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.mkdir(), loop], ids=["pipe", "folder", "loop"])
def test_a_gguf_file_that_is_no_file_is_refused(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    one_line(caught.value)


def test_a_file_that_may_not_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def closed(path: Path, *args: Any, **settings: Any) -> Any:
        if path.name == "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **settings)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(ModelError, match=r"config\.json cannot be read: Permission denied"):
        load_model(str(folder))


def test_a_device_without_memory_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="device 'meta' cannot be used"):
        load_model(str(folder), device="meta")
    with pytest.raises(ConfigError, match="goes to 'meta', which cannot be used"):
        load_model(str(folder), device_map={"": "meta"})


def test_weights_too_large_for_float16_are_named(folder: Path) -> None:
    weights(lambda tensors: tensors["model.norm.weight"].fill_(1e6))(folder)
    with pytest.raises(ModelError, match=r"infinite numbers in float16 \(model\.norm\.weight\).*try --dtype float32"):
        load_model(str(folder), dtype="float16")


def test_code_of_a_checkpoint_is_not_run_by_default_and_never_on_the_meta_device(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'harmed')!r}, 'w').write('x')\nclass M: pass\nclass C: pass\n"
    )
    config(auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})(folder)
    (note,) = load_model(str(folder)).notes
    assert "comes with its own Python code (evil.M), which was not run" in note
    meta_model(str(folder))
    config(model_type="gpt99")(folder)
    for read in (load_model, meta_model):
        with pytest.raises(ModelError, match="needs Python code that comes with it"):
            read(str(folder))
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_a_readme_that_is_not_a_file_does_not_block(make: Any, folder: Path) -> None:
    make(folder / "README.md")
    assert licence_of(str(folder)) is None
    assert load_model(str(folder)).route.name == "packed"


def test_an_identity_is_not_computed_from_a_pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(ModelError, match=f"{WEIGHTS} is a device or a pipe"):
        model_identity(str(folder))


# GGUF, whose header is written here by the specification.


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_file(
    fields: bytes = gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text("llama"),
    n_fields: int = 1,
    n_tensors: int = 1,
    version: int = 3,
    shape: tuple[int, ...] = (4, 2),
    kind: int = 0,
    offset: int = 0,
    n_dims: int | None = None,
    data: int = 32,
) -> bytes:
    table = gguf_text("token_embd.weight") + struct.pack("<I", len(shape) if n_dims is None else n_dims)
    table += struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + fields + table
    return head + bytes(-len(head) % 32) + bytes(data)


def field(name: str, kind: int, value: bytes) -> bytes:
    return gguf_text(name) + struct.pack("<I", kind) + value


ARCHITECTURE = field("general.architecture", 8, gguf_text("llama"))
GGUFS: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", "truncated"),
    "another magic": (b"FUGG" + bytes(99), "is not a GGUF file"),
    "version 1": (gguf_file(version=1), "version 1"),
    "version of another byte order": (gguf_file(version=3 << 24), "version"),
    "more tensors than bytes": (gguf_file(n_tensors=1 << 60), "truncated or damaged"),
    "more fields than bytes": (gguf_file(n_fields=1 << 60), "damaged"),
    "a name without end": (gguf_file(struct.pack("<Q", 1 << 62)), "truncated or damaged"),
    "a name that is no text": (
        gguf_file(struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc" + struct.pack("<II", 4, 0)), "UTF-8"),
    "a list without end": (gguf_file(field("a", 9, struct.pack("<IQ", 5, 1 << 60))), "truncated or damaged"),
    "texts without end": (gguf_file(field("a", 9, struct.pack("<IQ", 8, 1 << 60))), "truncated or damaged"),
    "lists in lists": (gguf_file(field("a", 9, struct.pack("<IQ", 9, 1) * 99)), "damaged"),
    "an unknown type of value": (gguf_file(field("a", 99, b"")), "damaged"),
    "no architecture": (gguf_file(field("a", 4, struct.pack("<I", 1))), "architecture"),
    "an unknown type of tensor": (gguf_file(kind=999), "unknown data type"),
    "a tensor beyond the end": (gguf_file(shape=(1 << 40, 2)), "beyond the end"),
    "a tensor of absurd shape": (gguf_file(shape=(1 << 62, 1 << 62)), "beyond the end"),
    "an offset beyond the end": (gguf_file(offset=1 << 63), "beyond the end"),
    "dimensions without end": (gguf_file(n_dims=1 << 31), "dimensions"),
    "data cut off": (gguf_file(data=31), "beyond the end"),
    "a million layers": (
        gguf_file(ARCHITECTURE + field("llama.block_count", 4, struct.pack("<I", 1_000_000)), 2), "number of layers"),
    "an alignment of zero": (
        gguf_file(ARCHITECTURE + field("general.alignment", 4, struct.pack("<I", 0)), 2), "alignment"),
    "no tensors": (gguf_file(n_tensors=0), "contains no weights"),
    "an unknown architecture": (gguf_file(field("general.architecture", 8, gguf_text("gpt99"))), "gpt99"),
    "nothing but an embedding": (gguf_file(), None),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUFS)
def test_a_damaged_gguf_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, cause = GGUFS[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for read in (load_model, meta_model):
        with pytest.raises(ModelError, match=cause) as caught:
            read(str(path))
        assert str(path) in one_line(caught.value)


def test_the_header_of_a_whole_gguf_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    fields = ARCHITECTURE + field("a", 6, struct.pack("<f", 0.5)) + field("b", 9, struct.pack("<IQ2i", 5, 2, 7, -1))
    path.write_bytes(gguf_file(fields, 3))
    header = gguf_weights(path)
    assert header.metadata == {"general.architecture": "llama", "a": 0.5, "b": [7, -1]}
    assert header.shapes == {"token_embd.weight": (2, 4)}
    assert header.numbers == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": [None, 2]},
        {"vision_config": {"num_hidden_layers": 0, "num_attention_heads": 0}},
        {"quantization_config": {"quant_method": "quark", "layer": {"dtype": "fp8_e4m3"}}},
        {"quantization_config": {"load_in_4bit": True}, "time_step_limit": float("inf")},
        {"head_dim": None, "sliding_window": None, "dtype": None, "num_experts": 0},
        {"dtype": "torch.bfloat16", "text_config": {"torch_dtype": "float16", "intermediate_size": [64, 128]}},
    ],
)
def test_configs_of_model_families_are_accepted(changes: dict[str, Any]) -> None:
    check_config({"model_type": "llama", **changes})


def test_a_whole_checkpoint_is_not_refused(folder: Path) -> None:
    lm = load_model(str(folder))
    assert lm.notes == ()
    expected = tiny_model("llama").state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in lm.model.state_dict().items())
