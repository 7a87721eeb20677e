from pathlib import Path

import pytest
from transformers import MambaConfig, MambaForCausalLM

from dualform.errors import ConfigError, ModelError
from dualform.models.cost.shape import shape_of, shape_of_config
from dualform.models.loading.meta import meta_model
from dualform.models.reading.language_model import NO_RECORDING
from dualform.models.reading.layout import Query, lay_out
from dualform.models.structure.find_anatomy import find_anatomy
from tests.tiny import save_tiny, tiny_model


def test_a_checkpoint_on_the_meta_device_has_a_shape_but_no_weights(tmp_path: Path):
    lm = meta_model(str(save_tiny("llama", tmp_path / "model")))
    assert all(weight.is_meta for weight in lm.model.parameters())
    assert lm.shape == shape_of(tiny_model("llama"))
    assert lm.bos == 0
    assert lm.max_positions == 512
    assert lm.device.type == "meta"


def test_a_model_without_weights_refuses_to_read(tmp_path: Path):
    lm = meta_model(str(save_tiny("llama", tmp_path / "model")))
    with pytest.raises(ModelError, match="no weights"):
        lm.encode((0,))
    queries = [Query((5, 6), ((7,),))]
    with pytest.raises(ModelError, match="no weights"):
        lm.route.read(None, queries, lay_out(queries), NO_RECORDING)


def test_a_model_without_attention_is_an_error_as_in_find_anatomy():
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=1)
    with pytest.raises(ModelError) as counted:
        shape_of_config(config)
    with pytest.raises(ModelError) as looked_for:
        find_anatomy(MambaForCausalLM(config).eval())
    assert str(counted.value) == str(looked_for.value)


def test_unknown_names_are_reported_as_they_are_when_a_model_is_loaded(tmp_path: Path):
    with pytest.raises(ModelError, match="no model folder at"):
        meta_model(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"contains neither config\.json"):
        meta_model(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="unknown dtype 'float8'"):
        meta_model(str(tmp_path), dtype="float8")
    with pytest.raises(ModelError, match="no GGUF file at"):
        meta_model(str(tmp_path / "model.gguf"))


def test_a_folder_without_weights_is_enough_but_pickled_ones_are_refused(tmp_path: Path):
    folder = save_tiny("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert meta_model(str(folder)).shape.parameters == 43168
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled"):
        meta_model(str(folder))


def test_what_is_no_causal_language_model_is_refused(tmp_path: Path):
    folder = save_tiny("llama", tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "t5"'))
    with pytest.raises(ModelError, match="could not be loaded as a causal language model"):
        meta_model(str(folder))
