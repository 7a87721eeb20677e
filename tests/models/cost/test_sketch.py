from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MambaConfig, MambaForCausalLM

from dualform.errors import ConfigError, ModelError
from dualform.models.cost.flops import forward_flops, key_value_training_flops
from dualform.models.cost.memory import layer_bytes, outside_bytes
from dualform.models.cost.sketch import shape_of, sketch_model, sketch_of
from dualform.models.loading.load import laid_out
from dualform.models.reading.language_model import NO_RECORDING
from dualform.models.reading.layout import Query, lay_out
from dualform.models.structure.anatomy import find_anatomy
from tests.models.mixture import EXPERTS, INNER, LAYERS, SENT, WIDTH, tiny_mixture
from tests.tiny import FAMILIES, PARAMETERS, save_tiny, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_gives_the_operations_of_the_real_model(family: str):
    model = tiny_model(family)
    anatomy = find_anatomy(model)
    shape = shape_of(laid_out(model.config, torch.float32))
    assert shape.parameters == PARAMETERS[family]
    assert shape.registry == anatomy.registry
    for own, prefix, scored in ((1, 0, 1), (13, 5, 2), (40, 0, 0)):
        assert shape.forward_flops(own, prefix, scored) == forward_flops(model, anatomy, own, prefix, scored)
        assert shape.training_flops(own, scored) == key_value_training_flops(model, anatomy, own, scored)
        without = key_value_training_flops(model, anatomy, own, scored, weight_gradients=False)
        assert shape.training_flops(own, scored, weight_gradients=False) == without


@pytest.mark.parametrize("family", FAMILIES)
def test_linears_that_hold_keys_or_values_are_told_from_those_that_are_packed(family: str):
    model = tiny_model(family)
    held = {rows.module for layer in find_anatomy(model).layers for rows in (layer.W_K, layer.W_V) if rows is not None}
    head = model.get_output_embeddings()
    packed = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name not in held and module is not head
    )
    shape = shape_of(model)
    assert shape.linears - shape.unpacked == packed


def test_the_sketch_of_a_checkpoint_holds_no_weight(tmp_path: Path):
    sketch = sketch_model(str(save_tiny("llama", tmp_path / "model")))
    assert all(weight.is_meta for weight in sketch.lm.model.parameters())
    assert sketch.shape == shape_of(tiny_model("llama"))
    assert sketch.lm.bos == 0
    assert sketch.lm.max_positions == 512
    assert sketch.lm.device.type == "meta"


def test_a_model_that_no_machine_here_could_hold_is_counted():
    large = LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
        num_key_value_heads=8, vocab_size=128256,
    )  # fmt: skip
    shape = sketch_of(large, "405b").shape
    assert shape.parameters == pytest.approx(405e9, rel=0.01)
    assert shape.forward_flops(1) == pytest.approx(2 * 403.7e9, rel=0.01)


def test_a_sketch_refuses_to_read(tmp_path: Path):
    lm = sketch_model(str(save_tiny("llama", tmp_path / "model"))).lm
    with pytest.raises(ModelError, match="no weights"):
        lm.encode((0,))
    queries = [Query((5, 6), ((7,),))]
    with pytest.raises(ModelError, match="no weights"):
        lm.route.read(None, queries, lay_out(queries), NO_RECORDING)


def test_of_a_mixture_the_bytes_of_all_experts_count_and_the_operations_of_those_that_a_token_is_sent_to():
    model = tiny_mixture()
    shape = shape_of(laid_out(model.config, torch.float32))
    experts = LAYERS * EXPERTS * 3 * WIDTH * INNER
    assert shape.parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.experts == experts
    assert shape.uncounted == 0
    assert shape.multiplied - shape.linears == experts * SENT / EXPERTS
    anatomy = find_anatomy(model)
    for own, prefix, scored in ((1, 0, 1), (13, 5, 2)):
        assert shape.forward_flops(own, prefix, scored) == forward_flops(model, anatomy, own, prefix, scored)
        assert shape.training_flops(own, scored) == key_value_training_flops(model, anatomy, own, scored)
    # More experts of which as many are asked are no more work.
    assert shape_of(tiny_mixture(2 * EXPERTS)).forward_flops(7) == shape.forward_flops(7)
    assert layer_bytes(shape, "float32") * LAYERS + outside_bytes(shape, "float32") == 4 * shape.parameters


def test_parameters_whose_use_is_not_known_are_told():
    model = tiny_mixture()
    # More experts than the config says are no experts that it speaks of.
    model.config.num_local_experts = EXPERTS + 1
    shape = shape_of(model)
    assert shape.experts == 0
    assert shape.uncounted == LAYERS * EXPERTS * 3 * WIDTH * INNER
    assert not any(shape_of(tiny_model(family)).uncounted for family in FAMILIES)


def test_a_model_without_attention_is_refused_as_when_its_anatomy_is_looked_for():
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=1)
    with pytest.raises(ModelError) as sketched:
        sketch_of(config, "mamba")
    with pytest.raises(ModelError) as looked_for:
        find_anatomy(MambaForCausalLM(config).eval())
    assert str(sketched.value) == str(looked_for.value)


def test_layers_with_a_window_are_counted():
    shape = shape_of(tiny_model("gemma3"))
    assert (shape.window, shape.n_windowed, shape.n_layers) == (16, 2, 3)


def test_unknown_names_are_told_as_they_are_when_a_model_is_loaded(tmp_path: Path):
    with pytest.raises(ModelError, match="no model folder at"):
        sketch_model(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        sketch_model(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        sketch_model(str(tmp_path), dtype="float8")
    with pytest.raises(ModelError, match="no GGUF file at"):
        sketch_model(str(tmp_path / "model.gguf"))


def test_a_folder_without_weights_is_enough_but_pickled_ones_are_refused(tmp_path: Path):
    folder = save_tiny("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert sketch_model(str(folder)).shape.parameters == 43168
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled"):
        sketch_model(str(folder))


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path):
    folder = save_tiny("llama", tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "t5"'))
    with pytest.raises(ModelError, match="could not be loaded as a causal language model"):
        sketch_model(str(folder))
