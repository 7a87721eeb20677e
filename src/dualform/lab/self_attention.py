"""Self-attention over joint tokens (x, y) that can be trained to do gradient descent in context.

Tokens are e_j = (x_j, y_j) and, last, the query (x, 0). There are no positions: examples have no order. A layer updates
each token by

    e <- e + sum_h P_h sum_j W_V_h e_j (W_K_h e_j)^T W_Q_h e

where j runs over the examples only; with softmax the scores are scaled and normalised. The prediction is minus the last
entry of the query. Without softmax, LayerNorm and MLP a layer multiplies every token by I + M with
M = sum_h (P_h W_V_h) G (W_K_h^T W_Q_h), which depends on the examples only through G = sum_j e_j e_j^T. The next layer
needs (I + M) G (I + M)^T, so that tokens of examples need not be computed at all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualform.errors import ConfigError, ShapeError

GRAM = 10 * 10 / 12
"""Mean trace of the inputs' Gram matrix for d = N = 10 and inputs uniform in (-0.5, 0.5), the setting in which the
scale of the initial weights was chosen."""

Weights = dict[str, Tensor]
"""Weights by name, each with a leading axis of models."""

PredictFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function such as `lab.predictors.Predictor`: examples x `(sequence, point, d)` and y `(sequence, point)`, query
inputs `(sequence, query, d)` -> predictions `(sequence, query)`."""


@dataclass(frozen=True)
class SelfAttentionConfig:
    """Shape of a self-attention model."""

    dimension: int
    """d, the dimension of inputs; tokens have width d + 1."""
    layers: int = 1
    heads: int = 1
    recurrent: bool = False
    """Whether all layers share one set of weights."""
    softmax: bool = False
    """Whether scores are divided by sqrt(key_size) and normalised by softmax over the examples; else they are raw."""
    layer_norm: bool = False
    """Whether the inputs of attention and of the MLP are normalised."""
    mlp: int = 0
    """Hidden width of the residual GELU MLP after each attention; 0 for no MLP."""
    key_size: int | None = None
    """Width of keys, queries and values of each head; None for d + 1."""

    def __post_init__(self) -> None:
        given = {"dimension": self.dimension, "layers": self.layers, "heads": self.heads, "key_size": self.width}
        problems = [f"{name} is {value}, expected 1 or more" for name, value in given.items() if value < 1]
        if self.mlp < 0:
            problems.append(f"mlp is {self.mlp}, expected 0 or more")
        if problems:
            raise ConfigError("invalid shape of self-attention: " + "; ".join(problems) + ".")

    @property
    def token(self) -> int:
        """Width of a token."""
        return self.dimension + 1

    @property
    def width(self) -> int:
        """Width of keys, queries and values."""
        return self.token if self.key_size is None else self.key_size

    @property
    def linear(self) -> bool:
        """Whether each layer multiplies all tokens by one matrix, which depends only on the Gram matrix."""
        return not (self.softmax or self.layer_norm or self.mlp)

    @property
    def distinct_layers(self) -> int:
        """Number of layers with their own weights."""
        return 1 if self.recurrent else self.layers

    def draw_weights(self, generator: torch.Generator, gram: float = GRAM) -> Weights:
        """Initial weights of one model, without the axis of models.

        W_Q starts as a copy of W_K, so that all directions of W_K^T W_Q have the same sign. With independent draws
        about a quarter of the seeds stayed on a plateau for thousands of steps, because directions with the wrong sign
        had shrunk to zero.

        Args:
            generator: Source of randomness.
            gram: Mean trace of sum_j x_j x_j^T over the examples. Layers without softmax and LayerNorm multiply by it,
                so P is scaled down as it grows.
        """
        token, width = self.token, self.width

        def normal(rows: int, columns: int, scale: float) -> Tensor:
            shape = (self.distinct_layers, self.heads, rows, columns)
            return torch.randn(*shape, generator=generator, device=generator.device) * scale / math.sqrt(token)

        # Layers start small, so that the Gram matrix does not explode with depth or with many or large examples.
        output_scale = 0.1 / self.layers * (1 if self.softmax or self.layer_norm else GRAM / gram)
        weights = {
            "W_K": normal(width, token, 0.7),
            "W_V": normal(width, token, 0.7),
            "P": normal(token, width, output_scale),
        }
        weights["W_Q"] = weights["W_K"].clone()
        ones = weights["P"].new_ones(self.distinct_layers, token)
        if self.layer_norm:
            weights |= {"norm.weight": ones, "norm.bias": torch.zeros_like(ones)}
        if self.mlp:
            weights |= {
                "mlp.in": normal(self.mlp, token, 1.0)[:, 0],
                "mlp.in_bias": ones.new_zeros(self.distinct_layers, self.mlp),
                "mlp.out": normal(token, self.mlp, 0.1)[:, 0],
                "mlp.out_bias": torch.zeros_like(ones),
            }
            if self.layer_norm:
                weights |= {"mlp.norm.weight": ones.clone(), "mlp.norm.bias": torch.zeros_like(ones)}
        return weights


@dataclass(frozen=True)
class Products:
    """The products of weights on which linear self-attention depends, `(model, layer, head, token, token)`."""

    PV: Tensor
    """P W_V."""
    KQ: Tensor
    """W_K^T W_Q."""

    @classmethod
    def of(cls, config: SelfAttentionConfig, weights: Weights) -> "Products":
        """Products of weights with a leading axis of models; those of a recurrent model are repeated for each layer."""
        PV = weights["P"] @ weights["W_V"]
        KQ = weights["W_K"].mT @ weights["W_Q"]
        if config.recurrent:
            PV, KQ = (product.expand(-1, config.layers, -1, -1, -1) for product in (PV, KQ))
        return cls(PV, KQ)

    @classmethod
    def of_descent(cls, d: int, layers: int, eta: float, gamma: float, n_context: int) -> "Products":
        """One model in which each layer does one step of GD++, or of GD if `gamma` is 0, starting from W_0 = 0.

        The two heads of `ops.constructions.gd_plus_plus_layer` share W_K^T W_Q = [[I, 0], [0, 0]], so that they are
        equivalent to one head with P W_V = [[-gamma I, 0], [0, -eta / N]].

        Source:
            arXiv:2212.07677v2, proposition 1 and appendix A.10.
        """
        KQ = torch.ones(d + 1, dtype=torch.float64)
        KQ[d] = 0
        PV = -gamma * KQ
        PV[d] = -eta / n_context
        PV, KQ = (torch.diag(diagonal).expand(1, layers, 1, -1, -1) for diagonal in (PV, KQ))
        return cls(PV, KQ)

    def balanced(self) -> "Products":
        """The same layers, rescaled so that the diagonal of W_K^T W_Q over the inputs has mean 1, as in `of_descent`.

        c P W_V and W_K^T W_Q / c give the same layer for any c, also a negative one, so that weights can be compared
        only once c is fixed.
        """
        c = self.KQ[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        return Products(self.PV * c, self.KQ / c)

    def towards(self, other: "Products", share: float) -> "Products":
        """Linear interpolation from these products to those of `other`; `share` 1 gives `other`."""
        return Products(torch.lerp(self.PV, other.PV, share), torch.lerp(self.KQ, other.KQ, share))

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(model, sequence, query)`.

        Args:
            x: Inputs in context, `(model, sequence, point, d)`; the first axis may be 1.
            y: Targets in context, `(model, sequence, point)`.
            queries: Query inputs, `(model, sequence, query, d)`; queries do not attend to each other.
        """
        example_tokens, query_tokens = _tokens(x, y, queries)
        PV, KQ = self.PV.to(x), self.KQ.to(x)
        models = max(len(PV), len(example_tokens))
        G = (example_tokens.mT @ example_tokens).expand(models, -1, -1, -1)
        q = query_tokens.mT
        layers = PV.shape[1]
        for layer in range(layers - 1):
            M = _update(PV[:, layer], KQ[:, layer], G)
            q = q + M @ q
            half = G + M @ G
            G = half + half @ M.mT
        # Only the query's y is read from the last layer.
        last = _update(PV[:, -1, :, -1:], KQ[:, -1], G)
        return -(q[..., -1, :] + (last @ q)[..., 0, :])


def _update(PV: Tensor, KQ: Tensor, G: Tensor) -> Tensor:
    """M = sum_h P_h W_V_h G W_K_h^T W_Q_h, `(model, sequence, row, token)`.

    Args:
        PV: P_h W_V_h, `(model, head, row, token)`.
        KQ: W_K_h^T W_Q_h, `(model, head, token, token)`.
        G: Gram matrix, `(model, sequence, token, token)`.
    """
    n = G.shape[1]
    flat = G.flatten(1, 2)
    M: Tensor | None = None
    # One large product for each model is faster than a small product for each sequence.
    for pv, kq in zip(PV.unbind(1), KQ.unbind(1), strict=True):
        left = (flat @ pv.mT).unflatten(1, (n, -1)).mT
        head = (left.flatten(1, 2) @ kq).unflatten(1, (n, -1))
        M = head if M is None else M + head
    assert M is not None
    return M


def predict(config: SelfAttentionConfig, weights: Weights, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Predictions of several models at once, `(model, sequence, query)`.

    Args:
        config: Shape of the models.
        weights: With a leading axis of models.
        x: Inputs in context, `(model, sequence, point, d)`; the first axis may be 1.
        y: Targets in context, `(model, sequence, point)`.
        queries: Query inputs, `(model, sequence, query, d)`; queries do not attend to each other.
    """
    if config.linear:
        return Products.of(config, weights)(x, y, queries)
    return predict_by_tokens(config, weights, x, y, queries)


def predict_by_tokens(config: SelfAttentionConfig, weights: Weights, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """The same as `predict`, computing every token in every layer, which softmax, LayerNorm and MLP require."""
    example_tokens, query_tokens = _tokens(x, y, queries)
    n = example_tokens.shape[-2]
    tokens = torch.cat([example_tokens, query_tokens], dim=-2)
    for layer in range(config.layers):
        own = {name: value[:, 0 if config.recurrent else layer] for name, value in weights.items()}
        inputs = _layer_norm(own, "norm", tokens) if config.layer_norm else tokens
        for head in range(config.heads):
            W_K, W_Q, W_V, P = (own[name][:, None, head] for name in ("W_K", "W_Q", "W_V", "P"))
            k, v, q = inputs[..., :n, :] @ W_K.mT, inputs[..., :n, :] @ W_V.mT, inputs @ W_Q.mT
            scores = q @ k.mT
            if config.softmax:
                scores = (scores / math.sqrt(config.width)).softmax(-1)
            tokens = tokens + scores @ v @ P.mT
        if config.mlp:
            inputs = _layer_norm(own, "mlp.norm", tokens) if config.layer_norm else tokens
            hidden = F.gelu(inputs @ own["mlp.in"][:, None].mT + own["mlp.in_bias"][:, None, None])
            tokens = tokens + hidden @ own["mlp.out"][:, None].mT + own["mlp.out_bias"][:, None, None]
    return -tokens[..., n:, -1]


def _layer_norm(own: Weights, name: str, tokens: Tensor) -> Tensor:
    normal = F.layer_norm(tokens, tokens.shape[-1:])
    return normal * own[f"{name}.weight"][:, None, None] + own[f"{name}.bias"][:, None, None]


def _tokens(x: Tensor, y: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of examples and of queries, each `(model, sequence, token, d + 1)`."""
    return torch.cat([x, y[..., None]], -1), F.pad(queries, (0, 1))


class InContextTransformer(nn.Module):
    """Self-attention that predicts the y of a query from examples in context.

    Args:
        config: Shape of the model.
        weights: Weights by name, without an axis of models, such as from `SelfAttentionConfig.draw_weights`.
    """

    def __init__(self, config: SelfAttentionConfig, weights: Weights) -> None:
        super().__init__()
        self.config = config
        # A parameter's name must not have a dot.
        self._names = {name: name.replace(".", "_") for name in weights}
        for name, value in weights.items():
            self.register_parameter(self._names[name], nn.Parameter(value.detach().clone()))

    @property
    def weights(self) -> Weights:
        """Weights by name, with a leading axis of one model."""
        return {name: self.get_parameter(attribute)[None] for name, attribute in self._names.items()}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions of the last point's y from the points before it, `(sequence,)`.

        Args:
            x: Inputs, `(sequence, point, d)`.
            y: Targets, `(sequence, point)`; that of the last point is not used.
        """
        return self.predict(x[:, :-1], y[:, :-1], x[:, -1:])[:, 0]

    def predict(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)`, in the form of a `Predictor`.

        Args:
            x: Inputs in context, `(sequence, point, d)`.
            y: Targets in context, `(sequence, point)`.
            queries: Query inputs, whose y is predicted, `(sequence, query, d)`; queries do not attend to each other.

        Raises:
            ShapeError: If the shapes do not match each other or the model's dimension.
        """
        d = self.config.dimension
        if x.dim() != 3 or x.shape[-1] != d or y.shape != x.shape[:2] or queries.dim() != 3 or queries.shape[-1] != d:
            raise ShapeError(
                f"x must be (sequence, point, {d}), y (sequence, point) and queries (sequence, query, {d}); given "
                f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(queries.shape)}."
            )
        return predict(self.config, self.weights, x[None], y[None], queries[None])[0]

    def products(self) -> Products:
        """P W_V and W_K^T W_Q of each layer.

        Raises:
            ConfigError: If the model has softmax, LayerNorm or an MLP.
        """
        if not self.config.linear:
            raise ConfigError("a model with softmax, LayerNorm or an MLP is not described by products of its weights.")
        return Products.of(self.config, self.weights)


def sensitivities(predictor: PredictFunction, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Derivatives of the predictions with respect to the query inputs, dy/dx, `(sequence, query, d)`.

    For a linear predictor this is its w: what was inferred from the examples, rather than its value at one input.

    Args:
        predictor: A predictor in which queries do not affect each other.
        x: Inputs in context, `(sequence, point, d)`.
        y: Targets in context, `(sequence, point)`.
        queries: Query inputs, `(sequence, query, d)`.

    Source:
        arXiv:2212.07677v2, section 3.
    """
    with torch.enable_grad():
        inputs = queries.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(predictor(x, y, inputs).sum(), inputs)
    return gradient
