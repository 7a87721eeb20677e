"""A folder with a LoRA adapter can be given as a model: its base model is found, and the result is that of peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from dualform.errors import ModelError
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.export.checkpoint import write_adapter
from dualform.models.loading.load import load_model
from dualform.models.loading.meta import meta_model
from tests.tiny import save_tiny

IDS = torch.arange(3, 40)[None]


def save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter with random weights, as peft writes it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    chosen = {"r": 3, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **chosen))
    wrapped.save_pretrained(folder)
    return folder


def logits_of_peft(base: Path, folder: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        actual: torch.Tensor = peft.PeftModel.from_pretrained(model, folder).eval()(input_ids=IDS).logits
    return actual


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "base")


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "lora_alpha": 7}, {"use_dora": True}, {"target_modules": ["o_proj", "down_proj"]},
     {"modules_to_save": ["lm_head"]}],
    ids=["plain", "rs", "dora", "other", "saved"],
)  # fmt: skip
def test_it_computes_what_peft_computes(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", **settings)
    lm = load_model(str(adapter))
    with torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=IDS).logits, logits_of_peft(base, adapter), rtol=1e-4, atol=1e-4)
        plain = load_model(str(base)).model(input_ids=IDS).logits
    assert (plain - lm.model(input_ids=IDS).logits).abs().max() > 0.1
    assert lm.name == str(adapter)
    (note,) = lm.notes
    assert "is a LoRA adapter (rank 3" in note
    assert f"merged into its base model {base}" in note
    assert not any("lora" in name for name, _ in lm.model.named_parameters())


@pytest.mark.parametrize("bias", [False, True])
def test_one_that_dualform_wrote_computes_the_changes_that_were_written(bias: bool, base: Path, tmp_path: Path) -> None:
    lm = load_model(str(base))
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(32, 2, generator=generator), torch.randn(2, 32, generator=generator)
    name = "model.layers.1.self_attn.o_proj"
    changes = [WeightDelta(f"{name}.weight", 0, None, factors[0] @ factors[1] / 8)]
    if bias:
        changes.append(WeightDelta(f"{name}.bias", 0, None, torch.randn(32, generator=generator)))
    write_adapter(lm, changes, tmp_path / "adapter", rank=2, card="", base=str(base))
    loaded = load_model(str(tmp_path / "adapter"))
    with torch.no_grad(), applied(lm.model, changes):
        expected = lm.model(input_ids=IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert loaded.route.name == "packed"


def test_a_base_is_found_next_to_the_adapter_and_in_the_current_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")

    def name_base(name: str) -> None:
        settings = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": name}))

    name_base("base")
    assert "its base" in load_model(str(adapter)).notes[0]
    assert meta_model(str(adapter)).shape.n_layers == 2
    name_base("../base")
    load_model(str(adapter))
    monkeypatch.chdir(tmp_path)
    name_base("base")
    load_model("adapter")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "/nowhere/at/all",
            "its base model '/nowhere/at/all' was not found: no model folder at .* Put the base model",
        ),
        (None, "adapter_config.json has no base_model_name_or_path"),
        (7, "adapter_config.json has no base_model_name_or_path"),
        ("a\0b", "was not found: .* is not a valid model name"),
        (".", "was not found: that is the adapter's own folder"),
        ("someone/model", "its base model 'someone/model' was not found: .*could not be reached"),
    ],
)
def test_a_base_that_is_missing_is_named_with_the_remedy(
    name: Any, message: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    adapter = save_adapter(base, tmp_path / "adapter")
    monkeypatch.chdir(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": name}))
    for read in (load_model, meta_model):
        with pytest.raises(ModelError, match=message) as caught:
            read(str(adapter))
        assert str(caught.value).isprintable()


def test_an_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(adapter)}))
    with pytest.raises(ModelError, match="is itself an adapter"):
        load_model(str(other))


def test_weights_and_an_adapter_in_one_folder_are_refused_by_name(base: Path) -> None:
    # transformers loads both without a word.
    save_adapter(base, base)
    with pytest.raises(ModelError, match=r"both a full model and an adapter \(adapter_config.json\)"):
        load_model(str(base))


def test_a_config_next_to_an_adapter_is_no_model(base: Path, tmp_path: Path) -> None:
    # Trainers often leave the base's config there.
    adapter = save_adapter(base, tmp_path / "adapter")
    shutil.copy(base / "config.json", adapter)
    assert "is a LoRA adapter" in load_model(str(adapter)).notes[0]


def test_pickled_and_damaged_adapters_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors: .*header"):
        load_model(str(adapter))
    weights.unlink()
    with pytest.raises(ModelError, match=r"adapter_model.safetensors cannot be read"):
        load_model(str(adapter))
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"pickled \(adapter_model.bin\), and loading a pickle can run code"):
        load_model(str(adapter))


def test_an_adapter_that_does_not_fit_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for changes, message in (
        (
            {"target_modules": ["q_proj", "v_proj"]},
            "does not match its base model .* is missing from the adapter, and 3 more",
        ),
        ({"target_modules": ["k_proj"]}, "does not match its base model"),
        ({"target_modules": ["nowhere"]}, "nowhere"),
        ({"r": 5}, "size mismatch"),
        ({"peft_type": "IA3"}, "an adapter of type IA3, but dualform supports only LoRA"),
        ({"peft_type": None}, "an adapter of type None"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
        with pytest.raises(ModelError, match=message):
            load_model(str(adapter))
    small = save_tiny("llama", tmp_path / "small", num_hidden_layers=1)
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(small)}))
    with pytest.raises(ModelError, match=r"does not match its base model .* is unexpected in the adapter"):
        load_model(str(adapter))


def test_quantized_and_offloaded_bases_are_refused(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(base, tmp_path / "adapter")
    with pytest.raises(ModelError, match="its base model is not entirely in memory"):
        load_model(str(adapter), device_map={"": "disk"})
