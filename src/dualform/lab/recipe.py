"""Recipes: all settings of a training run except the text."""

import difflib
import inspect
import math
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dualform.configuration import checked, read_settings
from dualform.errors import ConfigError
from dualform.lab.tokenizer import SMALLEST_VOCABULARY
from dualform.lab.training import rate_share

RECIPES: tuple[str, ...] = ("tiny", "small", "124m", "350m")
"""Names of the recipes shipped with dualform, by size."""

Precision = Literal["float32", "bfloat16", "float64"]
"""float32; bfloat16 arithmetic (autocast) with float32 weights; float64, for checks."""


class Recipe(BaseModel):
    """Settings of a training run. Equal recipes and texts give equal models, bit for bit on the same machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: dict[str, Any]
    """The model's family (`model_type`) and fields of its transformers config, or the name of a recipe whose model to
    use. Vocabulary and end-of-text token are set automatically, and the number of positions is `length` by default."""
    vocab_size: int = Field(ge=SMALLEST_VOCABULARY, le=1 << 22)
    """Size of the vocabulary; tokenizers trained for the corpus have this size."""
    length: int = Field(ge=2, le=1 << 20)
    """Tokens in a sequence."""

    tokens: int = Field(ge=1)
    """Tokens to train on; an incomplete last batch is not used."""
    batch_tokens: int = Field(ge=2)
    """Tokens in a step, over all processes: a multiple of `length`."""
    micro_batch: int = Field(default=8, ge=1, le=1 << 16)
    """Largest number of sequences in one forward pass of a process, which bounds memory; gradients are accumulated."""

    learning_rate: float = Field(gt=0, le=1e3)
    """Highest learning rate of AdamW."""
    warmup: float = Field(default=0.02, ge=0, lt=1)
    """Share of the steps in which the rate rises linearly to its highest value."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Rate of the last step, as a share of the highest; the rate falls along a cosine."""
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Weight decay of matrices; embeddings, biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the averages of gradients and of squared gradients."""
    epsilon: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    """AdamW's epsilon."""
    clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient (L2 over all weights); null for no clipping."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the initial weights, and of dropout if the config has any."""
    data_seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the order of the text."""
    precision: Precision = "float32"
    """float32, bfloat16 (autocast; weights and optimiser stay float32), or float64."""

    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between checkpoints; there is always one after the last step."""
    evaluate_every: int = Field(default=1000, ge=1)
    """Steps between validation losses, if there is validation text; there is always one after the last step."""
    evaluate_tokens: int = Field(default=1 << 16, ge=1)
    """Largest number of tokens for a validation loss, evenly spread over the text."""

    @field_validator("model", mode="before")
    @classmethod
    def _model_of(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        if given not in RECIPES:
            raise ValueError(f"must be a config or one of {', '.join(RECIPES)}")
        return _preset(given)["model"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_tokens % self.length:
            lower = self.batch_tokens // self.length * self.length
            near = " or ".join(str(n) for n in (lower, lower + self.length) if n)
            raise ValueError(f"batch_tokens {self.batch_tokens} must be a multiple of length {self.length}: {near}")
        if self.tokens < self.batch_tokens:
            raise ValueError(f"tokens {self.tokens} must be at least one batch of {self.batch_tokens}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie in [0, 1)")
        if self.clip is not None and not math.isfinite(self.clip):
            raise ValueError(f"clip {self.clip} must be finite, or null for no clipping")
        self.config()
        return self

    @property
    def sequences(self) -> int:
        """Number of sequences in a batch."""
        return self.batch_tokens // self.length

    @property
    def steps(self) -> int:
        """Number of steps of the run."""
        return self.tokens // self.batch_tokens

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a linear rise, then a fall along a cosine."""
        return self.learning_rate * rate_share(step, round(self.warmup * self.steps), self.steps - 1, self.final_rate)

    def config(self, end_of_text: int = 0) -> PretrainedConfig:
        """The transformers config of the model.

        Args:
            end_of_text: Id of the token between documents.

        Raises:
            ValueError: If the family is not a causal language model, or a field is unknown or has an invalid value.
        """
        fields = dict(self.model)
        family = fields.pop("model_type", None)
        if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or family not in CONFIG_MAPPING:
            raise ValueError(
                f"model_type {family!r} is not a causal language model of transformers"
                f"{_did_you_mean(str(family), MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
            )
        kind = CONFIG_MAPPING[family]
        # transformers would silently accept a misspelt field and use the default.
        known = {*inspect.signature(kind.__init__).parameters, *kind.attribute_map} - {"self", "kwargs", "vocab_size"}
        for name in fields:
            if name == "vocab_size":
                raise ValueError("vocab_size is a field of the recipe, not of its model")
            if name not in known:
                raise ValueError(f"{kind.__name__} has no field {name!r}{_did_you_mean(name, known)}")
        # No padding token: its embedding would not be trained, but the end-of-text token must be.
        tokens = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": None}
        positions = {"max_position_embeddings": self.length} if "max_position_embeddings" in known else {}
        if kind.attribute_map.get("max_position_embeddings") in fields:
            positions = {}
        try:
            config: PretrainedConfig = kind(**{"vocab_size": self.vocab_size, **tokens, **positions, **fields})
        # Config classes raise many different exceptions.
        except Exception as error:
            raise ValueError(f"{kind.__name__} does not accept this model: {' '.join(str(error).split())}") from error
        window = getattr(config, "max_position_embeddings", None)
        if isinstance(window, int) and window < self.length:
            raise ValueError(f"the model has {window} positions, but sequences are {self.length} tokens long")
        return config

    def build(self, end_of_text: int = 0) -> PreTrainedModel:
        """The model on the CPU, with weights initialised by the family's own rule from `seed`.

        The weights are the same on every machine, and the global random state is unchanged.

        Args:
            end_of_text: Id of the token between documents.
        """
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            # torch.manual_seed would also seed other devices, whose state is not restored.
            torch.default_generator.manual_seed(self.seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(self.config(end_of_text), dtype=dtype)
        return model


def load_recipe(name: str | Path, /, **settings: Any) -> Recipe:
    """A shipped recipe or one from a YAML file, with some settings changed.

    Args:
        name: One of `RECIPES`, or a file.
        **settings: Fields that override those of the recipe.

    Raises:
        ConfigError: If the recipe does not exist or has invalid values; the message names all of them.
    """
    if str(name) in RECIPES:
        given = _preset(str(name))
    else:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"recipe {str(name)!r} is unknown: give one of {', '.join(RECIPES)}, or a YAML file")
        given = read_settings(path, "recipe")
    return checked(Recipe, {**given, **settings}, f"recipe {name}: ")


def _preset(name: str) -> dict[str, Any]:
    text = resources.files("dualform.lab").joinpath("recipes", f"{name}.yaml").read_text(encoding="utf-8")
    given: dict[str, Any] = yaml.safe_load(text)
    return given


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
