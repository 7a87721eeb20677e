"""A model without its weights: what its config alone says of sizes, for reckoning what a run will cost.

The modules are laid out on torch's meta device, which keeps shapes and stores nothing, so that a model far too large
for this machine can be counted on it.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dualform.errors import ConfigError, ModelError
from dualform.models.cost.flops import beside_linears
from dualform.models.loading.load import DTYPES, examine_files, laid_out, read_config, read_tokenizer
from dualform.models.loading.locate import explained, find_model
from dualform.models.reading.language_model import LanguageModel, window_of
from dualform.models.reading.layout import Layout, Query
from dualform.models.structure.anatomy import Anatomy, LayerAnatomy, is_linear

# A linear whose last name is one of these holds W_K or W_V, alone or fused with others.
_KEY_VALUE = frozenset(
    {"k_proj", "v_proj", "key", "value", "key_proj", "value_proj", "kv_proj", "qkv_proj", "qkv", "c_attn", "Wqkv"}
    | {"query_key_value", "to_k", "to_v"}
)


@dataclass(frozen=True)
class Shape:
    """Sizes from which operations, bytes and seconds are counted."""

    parameters: int
    """Tied ones once."""
    linears: int
    """Weights of all linears but the output head."""
    key_value: int
    """Of these, the rows of W_K and W_V."""
    unpacked: int
    """Weights of linears that are multiplied plainly: those that hold W_K or W_V, and gpt2's transposed ones."""
    head: int
    """Weights of the output head."""
    vocabulary: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_inner: int
    """Width inside the MLP."""
    n_linears: int
    """Modules."""
    window: int
    """Tokens that layers with a sliding window look back; 0 without any."""
    n_windowed: int
    """Layers that have one."""
    registry: bool
    """Attention is reached through transformers' registry, so that the packed route can be taken."""
    packable: bool
    """Some weights are such as `models.products` packs: all linears but the unpacked, and the head."""
    experts: int = 0
    """Weights of a mixture's experts, which are in no linear."""
    experts_share: float = 0.0
    """Of these, what one token is multiplied with."""
    uncounted: int = 0
    """Weights outside of linears whose operations are not counted."""

    @property
    def multiplied(self) -> float:
        """Weights that one token is multiplied with in the blocks."""
        return self.linears + self.experts * self.experts_share

    def forward_flops(self, own: float, prefix: float = 0, scored: float = 1) -> float:
        """As `models.flops.forward_flops`: one sequence, its prefix at hand."""
        pairs = own * prefix + own * (own + 1) / 2
        return 2.0 * self.multiplied * own + self._attention(pairs) + 2.0 * self.head * scored

    def training_flops(self, tokens: float, scored: float, weight_gradients: bool = True) -> float:
        """As `models.flops.key_value_training_flops`: one step on one sequence."""
        trained = self.key_value if weight_gradients else 0
        pairs = tokens * (tokens + 1) / 2
        products = tokens * (4.0 * self.multiplied + 2.0 * trained)
        return products + 3 * self._attention(pairs) + 4.0 * self.head * scored

    def full_training_flops(self, tokens: float, scored: float) -> float:
        """One step that trains all weights on one sequence: three forwards."""
        return 3.0 * self.forward_flops(tokens, scored=scored)

    def _attention(self, pairs: float) -> float:
        return 4.0 * self.n_heads * self.d_head * pairs * self.n_layers


@dataclass(frozen=True)
class Sketch:
    """A model as it will be, its weights left out."""

    lm: LanguageModel
    """With tokenizer and config, on the meta device: it can be tokenised for, and cannot be read."""
    shape: Shape

    @property
    def name(self) -> str:
        """The model's."""
        return self.lm.name


class _Unread:
    """The route of a model that has no weights."""

    name = "none"

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy

    def encode(self, prefix: tuple[int, ...]) -> Any:
        raise ModelError("a sketch has no weights, so it cannot read. Load the model.")

    def read(self, prefix: Any, queries: list[Query], layout: Layout, want: Any) -> Any:
        raise ModelError("a sketch has no weights, so it cannot read. Load the model.")


def sketch_model(name: str, *, dtype: str = "float32") -> Sketch:
    """Lay out a model from its config, and load its tokenizer. Code that comes with a checkpoint is never run.

    Args:
        name: As `load_model` takes it. Of a hub id only config and tokenizer are fetched.
        dtype: Of the weights.

    Raises:
        ModelError: No such model, no causal language model, or one that needs code of its own.
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
        model = laid_out(config, DTYPES[dtype])
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no output head over a vocabulary to read answers from.")
    return _sketched(name, model, tokenizer)


def _sketched(name: str, model: PreTrainedModel, tokenizer: Any) -> Sketch:
    shape = shape_of(model)
    layer = LayerAnatomy("", None, None, None, None, shape.n_heads, shape.n_kv_heads, shape.d_head)
    anatomy = Anatomy((layer,) * shape.n_layers, shape.registry)
    return Sketch(LanguageModel(name, model, tokenizer, anatomy, _Unread(anatomy), ()), shape)


def shape_of(model: PreTrainedModel) -> Shape:
    """Sizes of a model, whether it has weights or not.

    Raises:
        ModelError: It has no attention heads.
    """
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        # As `find_anatomy`, which sees it in a forward.
        raise ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform reads causal transformers with attention layers."
        )
    beside = beside_linears(model)
    head = model.get_output_embeddings()
    linears = {name: one for name, one in model.named_modules() if is_linear(one) and one is not head}
    # gpt2's transposed linears are not packed, whatever they hold.
    plain = {name for name, one in linears.items() if type(one) is not nn.Linear or _holds_key_value(name)}
    d_model = int(model.get_input_embeddings().weight.shape[1])
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or getattr(config, "kv_channels", None) or d_model // n_heads)
    n_kv_heads = _kv_heads(config, n_heads)
    n_layers = int(config.num_hidden_layers)
    types = getattr(config, "layer_types", None) or ()
    window = window_of(model)
    sizes = {name: one.get_parameter("weight").numel() for name, one in linears.items()}
    widest = max((max(one.get_parameter("weight").shape) for one in linears.values()), default=d_model)
    return Shape(
        parameters=sum(weight.numel() for weight in model.parameters()),
        linears=sum(sizes.values()),
        key_value=2 * n_kv_heads * d_head * d_model * n_layers,
        unpacked=sum(sizes[name] for name in plain),
        head=int(head.weight.numel()),
        vocabulary=int(head.weight.shape[0]),
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_inner=max(widest, round(beside.used / (3 * d_model * n_layers))),
        n_linears=len(linears),
        window=window,
        n_windowed=sum("sliding" in str(kind) for kind in types) if types else (n_layers if window else 0),
        registry=bool(type(model)._can_set_attn_implementation()),
        packable=type(head) is nn.Linear or len(plain) < len(linears),
        experts=sum(beside.experts.values()),
        experts_share=beside.share,
        uncounted=beside.uncounted,
    )


def _holds_key_value(name: str) -> bool:
    return name.rpartition(".")[2] in _KEY_VALUE


def _kv_heads(config: Any, n_heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        # Falcon's first generation: one head of keys and values for all.
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return n_heads


def sketch_of(config: PreTrainedConfig, name: str, dtype: str = "float32") -> Sketch:
    """A model that is yet to be trained, laid out from its config; it has no tokenizer."""
    model = laid_out(config, DTYPES[dtype])
    return _sketched(name, model, None)
