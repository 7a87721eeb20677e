"""A model without weights, on torch's meta device: enough to tokenise texts and to count operations."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualform.errors import ConfigError, ModelError
from dualform.models.compat import can_set_attention
from dualform.models.loading.load import DTYPES, examine_files, read_config, read_tokenizer
from dualform.models.loading.locate import explain_loading_errors, find_model
from dualform.models.loading.meta_device import meta_device_model
from dualform.models.reading.language_model import WITHOUT_WEIGHTS, LanguageModel
from dualform.models.reading.layout import Layout, Query
from dualform.models.structure.anatomy import Anatomy


class _NoRoute:
    """The route of a model that has no weights."""

    name = WITHOUT_WEIGHTS

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def encode(self, prefix: tuple[int, ...]) -> Any:
        raise ModelError("this model is on the meta device and has no weights, so it cannot run. Use load_model.")

    def read(self, prefix: Any, queries: list[Query], layout: Layout, want: Any) -> Any:
        return self.encode(())


def meta_model(name: str, *, dtype: str = "float32") -> LanguageModel:
    """Build a model from its config on the meta device, with its tokenizer.

    Code that comes with a checkpoint is never run.

    Args:
        name: As in `load_model`. From the hub, only the config and the tokenizer are fetched.
        dtype: Dtype of the weights.

    Returns:
        A model that can tokenise texts and has a `shape`, but cannot run.

    Raises:
        ModelError: No such model, not a causal language model, no attention layers, or custom code is needed.
        HubError: The name is not a local model and the hub did not answer.
        ConfigError: Unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    location = find_model(name)
    with explain_loading_errors(name):
        files = examine_files(location, needs_weights=False)
        config = read_config(location, trust_remote_code=False)
        files.require_agreement(config, DTYPES[dtype], trust_remote_code=False)
        tokenizer = read_tokenizer(location, trust_remote_code=False)
        model = meta_device_model(config, DTYPES[dtype])
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no output head, so it cannot score answers.")
    lm = without_weights(model, tokenizer, name)
    _ = lm.shape
    return lm


def without_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LanguageModel:
    """Wrap a model on the meta device as `meta_model` does."""
    # Without weights the layers cannot be found by probing; `LanguageModel.shape` takes them from the config.
    anatomy = Anatomy((), can_set_attention(model))
    return LanguageModel(name, model, tokenizer, anatomy, _NoRoute(anatomy), ())
