"""Distances between two predictors: between their predictions, and between the weights that these imply."""

from torch import Tensor

from dualform.errors import ShapeError
from dualform.lab.predictors import Predictor, shortest_fit


def spd(a: Predictor, b: Predictor, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Squared prediction difference: E (a(D)(x') - b(D)(x'))^2 over contexts D = (x, y) and query inputs x'.

    Args:
        a: First predictor.
        b: Second predictor.
        x: Inputs in context, `(sequence, point, d)`.
        y: Targets in context, `(sequence, point)`.
        queries: Query inputs x', `(sequence, query, d)`.

    Returns:
        A scalar tensor, 0 or more, in units of y squared.

    Source:
        SPD, arXiv:2211.15661, section 4.1.
    """
    return (a(x, y, queries) - b(x, y, queries)).square().mean()


def ilwd(a: Predictor, b: Predictor, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Implicit linear weight difference: E |w_a - w_b|^2 over contexts, with the weights of `implied_weights`.

    For linear predictors this is the distance of their weights. For others, such as nearest neighbours, it compares
    the linear part of the predictions and depends on the query inputs.

    Args:
        a: First predictor.
        b: Second predictor.
        x: Inputs in context, `(sequence, point, d)`.
        y: Targets in context, `(sequence, point)`.
        queries: Query inputs, `(sequence, query, d)`; at least d queries.

    Returns:
        A scalar tensor, 0 or more, in units of w squared.

    Raises:
        ShapeError: If there are fewer than d queries.

    Source:
        ILWD, arXiv:2211.15661, section 4.1.
    """
    return (
        (implied_weights(a(x, y, queries), queries) - implied_weights(b(x, y, queries), queries))
        .square()
        .sum(-1)
        .mean()
    )


def implied_weights(predicted: Tensor, queries: Tensor) -> Tensor:
    """Least-squares weights w for which w x fits the predictions, `(sequence, d)`.

    Args:
        predicted: Predictions, `(sequence, query)`.
        queries: Query inputs, `(sequence, query, d)`.

    Raises:
        ShapeError: If there are fewer than d queries, which do not determine w.
    """
    if queries.shape[1] < queries.shape[2]:
        raise ShapeError(
            f"{queries.shape[1]} queries do not determine w in {queries.shape[2]} dimensions; give "
            f"{queries.shape[2]} or more."
        )
    return shortest_fit(queries, predicted)
