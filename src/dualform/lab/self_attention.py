"""Self-attention over joint tokens (x, y) that can be trained to do in context what gradient descent does.

Tokens are e_j = (x_j, y_j) and, last, the query (x, 0); no position is encoded, examples have no order. A layer adds to
each token

    e <- e + sum_h P_h sum_j W_V_h e_j (W_K_h e_j)^T W_Q_h e

where j runs over the examples, which alone are keys and values; with softmax the scores are scaled and normalised.
The prediction is minus the query's last entry. Without softmax, LayerNorm and MLP a layer is one matrix a sequence,
I + M with M = sum_h (P_h W_V_h) G (W_K_h^T W_Q_h), and all that it knows of the examples is G = sum_j e_j e_j^T; as it
acts on every token, it makes of G what the next layer needs, (I + M) G (I + M)^T. So no token is carried through.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualform.errors import ConfigError, ShapeError

GRAM = 10 * 10 / 12
"""Trace that the inputs' part of the Gram matrix has on average where d = N = 10 and inputs are uniform in (-0.5, 0.5),
where first weights were found that learn at every depth."""

Weights = dict[str, Tensor]
"""By name, each with a leading axis of models."""

PredictFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What predicts as `lab.predictors.Predictor` does: examples x `(sequence, point, d)` and y `(sequence, point)`, inputs
asked for `(sequence, query, d)` -> `(sequence, query)`."""


@dataclass(frozen=True)
class SelfAttentionConfig:
    """A model's shape."""

    dimension: int
    """d, of inputs; tokens are d + 1 wide."""
    layers: int = 1
    heads: int = 1
    recurrent: bool = False
    """All layers have the same weights."""
    softmax: bool = False
    """Attention's scores over sqrt(key_size), normalised over the examples; otherwise scores as they are."""
    layer_norm: bool = False
    """What a layer reads, and what its MLP reads, is normalised."""
    mlp: int = 0
    """Hidden width of the MLP behind each attention, GELU, with a residual connection; 0: none."""
    key_size: int | None = None
    """Of keys, queries and values, for each head; None: d + 1."""

    def __post_init__(self) -> None:
        given = {"dimension": self.dimension, "layers": self.layers, "heads": self.heads, "key_size": self.width}
        problems = [f"{name} is {value}, expected 1 or more" for name, value in given.items() if value < 1]
        if self.mlp < 0:
            problems.append(f"mlp is {self.mlp}, expected 0 or more")
        if problems:
            raise ConfigError("no such self-attention: " + "; ".join(problems) + ".")

    @property
    def token(self) -> int:
        """Width of a token."""
        return self.dimension + 1

    @property
    def width(self) -> int:
        """Of keys, queries and values."""
        return self.token if self.key_size is None else self.key_size

    @property
    def linear(self) -> bool:
        """Whether each layer is one matrix a sequence, so that the Gram matrix is all there is to know."""
        return not (self.softmax or self.layer_norm or self.mlp)

    @property
    def own(self) -> int:
        """Layers with weights of their own."""
        return 1 if self.recurrent else self.layers

    def drawn(self, generator: torch.Generator, gram: float = GRAM) -> Weights:
        """First weights of one model, without the axis of models.

        Args:
            generator: Draws.
            gram: Mean trace of sum_j x_j x_j^T over the examples, which layers without softmax and LayerNorm multiply
                by: P is the smaller, the larger it is.

        W_Q begins as a copy of W_K, so that all directions of W_K^T W_Q have one sign. Where each was drawn by itself,
        about a quarter of seeds stayed for thousands of steps where directions of the wrong sign had gone to zero.
        """
        token, width = self.token, self.width

        def normal(rows: int, columns: int, scale: float) -> Tensor:
            drawn = torch.randn(self.own, self.heads, rows, columns, generator=generator, device=generator.device)
            return drawn * scale / math.sqrt(token)

        # A layer does little at first, so that neither depth nor many or large examples make the Gram matrix explode.
        first = 0.1 / self.layers * (1 if self.softmax or self.layer_norm else GRAM / gram)
        weights = {
            "W_K": normal(width, token, 0.7),
            "W_V": normal(width, token, 0.7),
            "P": normal(token, width, first),
        }
        weights["W_Q"] = weights["W_K"].clone()
        like = weights["P"].new_ones(self.own, token)
        if self.layer_norm:
            weights |= {"norm.weight": like, "norm.bias": torch.zeros_like(like)}
        if self.mlp:
            weights |= {
                "mlp.in": normal(self.mlp, token, 1.0)[:, 0],
                "mlp.in_bias": like.new_zeros(self.own, self.mlp),
                "mlp.out": normal(token, self.mlp, 0.1)[:, 0],
                "mlp.out_bias": torch.zeros_like(like),
            }
            if self.layer_norm:
                weights |= {"mlp.norm.weight": like.clone(), "mlp.norm.bias": torch.zeros_like(like)}
        return weights


@dataclass(frozen=True)
class Products:
    """All that linear self-attention does with its weights, layer by layer, `(model, layer, head, token, token)`."""

    PV: Tensor
    """P W_V."""
    KQ: Tensor
    """W_K^T W_Q."""

    @classmethod
    def of(cls, config: SelfAttentionConfig, weights: Weights) -> "Products":
        """Of weights with their leading axis of models; a recurrent model's once for each time they are applied."""
        PV = weights["P"] @ weights["W_V"]
        KQ = weights["W_K"].mT @ weights["W_Q"]
        if config.recurrent:
            PV, KQ = (one.expand(-1, config.layers, -1, -1, -1) for one in (PV, KQ))
        return cls(PV, KQ)

    @classmethod
    def of_descent(cls, d: int, layers: int, eta: float, gamma: float, n_context: int) -> "Products":
        """One model whose every layer does a step of GD++ from W_0 = 0; of GD where `gamma` is 0.

        The two heads of `ops.constructions.gd_plus_plus_layer` have one W_K^T W_Q, [[I, 0], [0, 0]], so that their
        P W_V add up to that of one head, [[-gamma I, 0], [0, -eta / N]].

        Source:
            arXiv:2212.07677v2, proposition 1 and appendix A.10.
        """
        kept = torch.ones(d + 1, dtype=torch.float64)
        kept[d] = 0
        written = -gamma * kept
        written[d] = -eta / n_context
        PV, KQ = (torch.diag(one).expand(1, layers, 1, -1, -1) for one in (written, kept))
        return cls(PV, KQ)

    def balanced(self) -> "Products":
        """The same layers, with a mean of 1 on the diagonal of W_K^T W_Q over the inputs, as constructed ones have.

        c P W_V and W_K^T W_Q / c do the same for any c, its sign included, so that weights are only comparable once c
        is chosen.
        """
        c = self.KQ[..., :-1, :-1].diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        return Products(self.PV * c, self.KQ / c)

    def towards(self, other: "Products", share: float) -> "Products":
        """This, with some share of `other` in place of its own."""
        return Products(torch.lerp(self.PV, other.PV, share), torch.lerp(self.KQ, other.KQ, share))

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, `(model, sequence, query)`.

        Args:
            x: Inputs in context, `(model, sequence, point, d)`, or 1 in place of the models.
            y: Their targets, `(model, sequence, point)`.
            asked: Inputs whose y is asked for, `(model, sequence, query, d)`; none sees another.
        """
        examples, queries = _tokens(x, y, asked)
        PV, KQ = self.PV.to(x), self.KQ.to(x)
        models = max(len(PV), len(examples))
        G = (examples.mT @ examples).expand(models, -1, -1, -1)
        q = queries.mT
        layers = PV.shape[1]
        for layer in range(layers - 1):
            M = _update(PV[:, layer], KQ[:, layer], G)
            q = q + M @ q
            half = G + M @ G
            G = half + half @ M.mT
        # Of the last layer only what it writes into the query's y is ever read.
        last = _update(PV[:, -1, :, -1:], KQ[:, -1], G)
        return -(q[..., -1, :] + (last @ q)[..., 0, :])


def _update(PV: Tensor, KQ: Tensor, G: Tensor) -> Tensor:
    """M = sum_h P_h W_V_h G W_K_h^T W_Q_h, `(model, sequence, row, token)`.

    Args:
        PV: `(model, head, row, token)`.
        KQ: `(model, head, token, token)`.
        G: `(model, sequence, token, token)`, symmetric.
    """
    n = G.shape[1]
    flat = G.flatten(1, 2)
    M: Tensor | None = None
    # Sequences are rows of one large product a model; a product of tiny matrices a sequence would take longer.
    for pv, kq in zip(PV.unbind(1), KQ.unbind(1), strict=True):
        left = (flat @ pv.mT).unflatten(1, (n, -1)).mT
        one = (left.flatten(1, 2) @ kq).unflatten(1, (n, -1))
        M = one if M is None else M + one
    assert M is not None
    return M


def predict(config: SelfAttentionConfig, weights: Weights, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Predictions of several models at once, `(model, sequence, query)`.

    Args:
        config: Their shape.
        weights: With a leading axis of models.
        x: Inputs in context, `(model, sequence, point, d)`, or 1 in place of the models.
        y: Their targets, `(model, sequence, point)`.
        asked: Inputs whose y is asked for, `(model, sequence, query, d)`; none sees another.
    """
    if config.linear:
        return Products.of(config, weights)(x, y, asked)
    return predict_by_tokens(config, weights, x, y, asked)


def predict_by_tokens(config: SelfAttentionConfig, weights: Weights, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """As `predict`, every token carried through every layer; the only way for softmax, LayerNorm and MLP."""
    examples, queries = _tokens(x, y, asked)
    n = examples.shape[-2]
    tokens = torch.cat([examples, queries], dim=-2)
    for layer in range(config.layers):
        own = {name: value[:, 0 if config.recurrent else layer] for name, value in weights.items()}
        read = _normed(own, "norm", tokens) if config.layer_norm else tokens
        for head in range(config.heads):
            W_K, W_Q, W_V, P = (own[name][:, None, head] for name in ("W_K", "W_Q", "W_V", "P"))
            k, v, q = read[..., :n, :] @ W_K.mT, read[..., :n, :] @ W_V.mT, read @ W_Q.mT
            scores = q @ k.mT
            if config.softmax:
                scores = (scores / math.sqrt(config.width)).softmax(-1)
            tokens = tokens + scores @ v @ P.mT
        if config.mlp:
            read = _normed(own, "mlp.norm", tokens) if config.layer_norm else tokens
            hidden = F.gelu(read @ own["mlp.in"][:, None].mT + own["mlp.in_bias"][:, None, None])
            tokens = tokens + hidden @ own["mlp.out"][:, None].mT + own["mlp.out_bias"][:, None, None]
    return -tokens[..., n:, -1]


def _normed(own: Weights, name: str, tokens: Tensor) -> Tensor:
    normal = F.layer_norm(tokens, tokens.shape[-1:])
    return normal * own[f"{name}.weight"][:, None, None] + own[f"{name}.bias"][:, None, None]


def _tokens(x: Tensor, y: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Of examples and of queries, `(model, sequence, token, d + 1)`."""
    return torch.cat([x, y[..., None]], -1), F.pad(asked, (0, 1))


class InContextTransformer(nn.Module):
    """Self-attention that is shown examples and asked for a y.

    Args:
        config: Its shape.
        weights: Its weights by name, without an axis of models, as `SelfAttentionConfig.drawn` has them.
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
        """By name, with an axis of one model in front."""
        return {name: self.get_parameter(attribute)[None] for name, attribute in self._names.items()}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions of the last point's y from the points before, `(sequence,)`.

        Args:
            x: `(sequence, point, d)`.
            y: `(sequence, point)`; the last point's is never looked at.
        """
        return self.ask(x[:, :-1], y[:, :-1], x[:, -1:])[:, 0]

    def ask(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, `(sequence, query)`, as a `Predictor` gives them.

        Args:
            x: Inputs in context, `(sequence, point, d)`.
            y: Their targets, `(sequence, point)`.
            asked: Inputs whose y is asked for, `(sequence, query, d)`; none sees another.

        Raises:
            ShapeError: The shapes do not go together, or inputs have another dimension than the model's.
        """
        d = self.config.dimension
        if x.dim() != 3 or x.shape[-1] != d or y.shape != x.shape[:2] or asked.dim() != 3 or asked.shape[-1] != d:
            raise ShapeError(
                f"x must be (sequence, point, {d}), y (sequence, point) and asked (sequence, query, {d}); given "
                f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(asked.shape)}."
            )
        return predict(self.config, self.weights, x[None], y[None], asked[None])[0]

    def products(self) -> Products:
        """P W_V and W_K^T W_Q, layer by layer.

        Raises:
            ConfigError: The model is not linear in its scores, so that they do not describe it.
        """
        if not self.config.linear:
            raise ConfigError("a model with softmax, LayerNorm or an MLP is not described by products of its weights.")
        return Products.of(self.config, self.weights)


def sensitivities(predictor: PredictFunction, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """How a prediction changes with the input that is asked for, dy/dx, `(sequence, query, d)`.

    For a linear predictor that is its w; it shows what was inferred from the examples, and not only what it says at
    one input.

    Args:
        predictor: What is asked; no query may see another.
        x: Inputs in context, `(sequence, point, d)`.
        y: Their targets, `(sequence, point)`.
        asked: Inputs whose y is asked for, `(sequence, query, d)`.

    Source:
        arXiv:2212.07677v2, section 3.
    """
    with torch.enable_grad():
        moved = asked.detach().requires_grad_()
        (found,) = torch.autograd.grad(predictor(x, y, moved).sum(), moved)
    return found
