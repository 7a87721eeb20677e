"""How far apart two predictors are: in what they predict, and in the weights that their predictions imply."""

from torch import Tensor

from dualform.errors import ShapeError
from dualform.lab.predictors import Predictor, shortest_fit


def spd(a: Predictor, b: Predictor, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Squared prediction difference: E (a(D)(x') - b(D)(x'))^2 over contexts D = (x, y) and the inputs asked for.

    Args:
        a: A predictor.
        b: Another.
        x: Inputs in context, `(sequence, point, d)`.
        y: Their targets, `(sequence, point)`.
        asked: x', `(sequence, query, d)`.

    Returns:
        A scalar tensor, 0 or more, in units of y squared.

    Source:
        SPD, arXiv:2211.15661, section 4.1.
    """
    return (a(x, y, asked) - b(x, y, asked)).square().mean()


def ilwd(a: Predictor, b: Predictor, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Implicit linear weight difference: E |w_a - w_b|^2 over contexts, w of each from `implied_weights`.

    Where predictions are w x it is the distance of these w. Where they are not, as those of nearest neighbours, it
    compares what is linear in them, and depends on the inputs asked for.

    Args:
        a: A predictor.
        b: Another.
        x: Inputs in context, `(sequence, point, d)`.
        y: Their targets, `(sequence, point)`.
        asked: `(sequence, query, d)`, d queries or more.

    Returns:
        A scalar tensor, 0 or more, in units of w squared.

    Raises:
        ShapeError: There are fewer queries than d.

    Source:
        ILWD, arXiv:2211.15661, section 4.1.
    """
    return (implied_weights(a(x, y, asked), asked) - implied_weights(b(x, y, asked), asked)).square().sum(-1).mean()


def implied_weights(predicted: Tensor, asked: Tensor) -> Tensor:
    """The w with which w x is nearest to the predictions, in the sense of least squares, `(sequence, d)`.

    Args:
        predicted: `(sequence, query)`.
        asked: `(sequence, query, d)`.

    Raises:
        ShapeError: There are fewer queries than d, so that many w would do.
    """
    if asked.shape[1] < asked.shape[2]:
        raise ShapeError(
            f"{asked.shape[1]} queries imply no one w in {asked.shape[2]} dimensions; ask for {asked.shape[2]} or more."
        )
    return shortest_fit(asked, predicted)
