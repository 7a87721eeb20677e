"""A model without its weights, on torch's meta device: enough to tokenise for it and to count what it computes."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualform.errors import ConfigError, ModelError
from dualform.models.compat import can_set_attention
from dualform.models.loading.load import DTYPES, examine_files, read_config, read_tokenizer
from dualform.models.loading.locate import explained, find_model
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
        raise ModelError("this model is on the meta device and has no weights, so it cannot read. Load the model.")

    def read(self, prefix: Any, queries: list[Query], layout: Layout, want: Any) -> Any:
        return self.encode(())


def meta_model(name: str, *, dtype: str = "float32") -> LanguageModel:
    """Make a model from its config on the meta device, and load its tokenizer. Code of a checkpoint is never run.

    Args:
        name: As `load_model` takes it. Of a hub id only config and tokenizer are fetched.
        dtype: Of the weights.

    Returns:
        A model that texts can be tokenised for and whose `shape` is known, and that cannot read.

    Raises:
        ModelError: No such model, no causal language model, one without attention, or one that needs code of its own.
        HubError: The name is none of ours and the hub did not answer.
        ConfigError: Unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    found = find_model(name)
    with explained(name):
        # A config and a tokenizer are enough for a plan.
        files = examine_files(found, needs_weights=False)
        config = read_config(found, trust_remote_code=False)
        files.require_agreement(config, DTYPES[dtype], trust_remote_code=False)
        tokenizer = read_tokenizer(found, trust_remote_code=False)
        model = meta_device_model(config, DTYPES[dtype])
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no output head over a vocabulary to read answers from.")
    lm = without_weights(model, tokenizer, name)
    _ = lm.shape
    return lm


def without_weights(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> LanguageModel:
    """A model on the meta device and its tokenizer, as `meta_model` returns them."""
    # Layers cannot be probed for without weights; `LanguageModel.shape` takes them from the config.
    anatomy = Anatomy((), can_set_attention(model))
    return LanguageModel(name, model, tokenizer, anatomy, _NoRoute(anatomy), ())
