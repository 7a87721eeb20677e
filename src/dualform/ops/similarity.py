"""Similarity of two settings inside the model: attention outputs (SimAOU), scores (SimAM), weight updates.

All are cosines, returned for each example and layer (and head); the caller averages them and computes intervals. A
zero vector has no direction, so its cosine is NaN.
"""

import torch
from einops import rearrange
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.cosine import cosine, require_same_shape, result_dtype, unit, widened


def sim_aou(zsl: Tensor, icl: Tensor, ft: Tensor) -> Tensor:
    """Cosine between the updates by context and by finetuning, from outputs that are normalised first.

    Computes cos(n(icl) - n(zsl), n(ft) - n(zsl)), where n is L2 normalisation, for each example and layer.
    Normalisation biases the score upwards: noise in the updates shrinks the original part of both normalised outputs,
    and this common shrinkage counts as similarity. If the updates are independent noise with r times the squared norm
    of the output, the score is (s - 1)^2 / ((s - 1)^2 + r) with s = sqrt(1 + r), which is 0.25 for r = 3.
    `sim_aou_raw` does not have this bias.

    Args:
        zsl: Attention outputs at the probe under ZSL, of shape `(example, layer, d_model)`.
        icl: The same under ICL, `(example, layer, d_model)`.
        ft: The same under FT, `(example, layer, d_model)`.

    Returns:
        Cosines in [-1, 1], of shape `(example, layer)`; NaN where an output or an update is exactly zero.

    Raises:
        ShapeError: The three shapes differ.

    Source:
        SimAOU, arXiv:2212.10559v3, section 4.4 ("the normalized output representation").
    """
    require_same_shape("example layer d_model", zsl=zsl, icl=icl, ft=ft)
    zsl_unit, icl_unit, ft_unit = unit(widened(zsl)), unit(widened(icl)), unit(widened(ft))
    return cosine(icl_unit - zsl_unit, ft_unit - zsl_unit).to(result_dtype(zsl, icl, ft))


def sim_aou_raw(zsl: Tensor, icl: Tensor, ft: Tensor) -> Tensor:
    """Cosine between the updates by context and by finetuning, without normalisation.

    Computes cos(icl - zsl, ft - zsl) for each example and layer. Independent updates score 0 in expectation.

    Args:
        zsl: Attention outputs at the probe under ZSL, of shape `(example, layer, d_model)`.
        icl: The same under ICL, `(example, layer, d_model)`.
        ft: The same under FT, `(example, layer, d_model)`.

    Returns:
        Cosines in [-1, 1], of shape `(example, layer)`; NaN where an update is exactly zero.

    Raises:
        ShapeError: The three shapes differ.

    Source:
        SimAOU of arXiv:2212.10559v3, section 4.4, without its normalisation, because of the bias that
        `sim_aou` describes.
    """
    require_same_shape("example layer d_model", zsl=zsl, icl=icl, ft=ft)
    # Widened before subtracting, because a small difference of large numbers loses digits in float32.
    zsl_wide = widened(zsl)
    return cosine(widened(icl) - zsl_wide, widened(ft) - zsl_wide).to(result_dtype(zsl, icl, ft))


def sim_am(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Cosine between pre-softmax attention scores to the query's own tokens, for each head.

    A constant added to a head's scores changes this number although it does not change the attention; see
    `sim_am_centred` and `sim_am_softmax`.

    Args:
        a: Scores at the probe under one setting, of shape `(example, layer, head, query_pos)`; entries at
            padding are ignored, even NaN.
        b: Scores under the other setting, `(example, layer, head, query_pos)`.
        mask: True for real tokens, of shape `(example, query_pos)`.

    Returns:
        Cosines in [-1, 1], of shape `(example, layer, head)`; NaN where all scores of one setting are zero, or
        an example has no real token.

    Raises:
        ShapeError: The shapes do not match, or the mask is not boolean.

    Source:
        SimAM, arXiv:2212.10559v3, section 4.5. The paper averages over heads, then examples and layers; its
        "before finetuning" is `sim_am(icl, zsl, mask)`, its "after finetuning" `sim_am(icl, ft, mask)`.
    """
    keep = _over_heads(mask, a=a, b=b)
    return cosine(_real(widened(a), keep), _real(widened(b), keep)).to(result_dtype(a, b))


def sim_am_centred(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """SimAM after subtracting each row's mean over real tokens, so that a constant added to the scores cancels.

    Args:
        a: Scores at the probe under one setting, of shape `(example, layer, head, query_pos)`; entries at
            padding are ignored, even NaN.
        b: Scores under the other setting, `(example, layer, head, query_pos)`.
        mask: True for real tokens, of shape `(example, query_pos)`.

    Returns:
        Cosines in [-1, 1] (Pearson correlations over tokens), of shape `(example, layer, head)`; NaN where a row
        is constant, such as a row of a single token.

    Raises:
        ShapeError: The shapes do not match, or the mask is not boolean.

    Source:
        SimAM of arXiv:2212.10559v3, section 4.5, made shift-invariant, as softmax is (a departure).
    """
    keep = _over_heads(mask, a=a, b=b)
    return cosine(_centred(widened(a), keep), _centred(widened(b), keep)).to(result_dtype(a, b))


def sim_am_softmax(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """SimAM of the attention weights: after softmax over the query's own real tokens.

    Args:
        a: Scores at the probe under one setting, of shape `(example, layer, head, query_pos)`; entries at
            padding are ignored, even NaN.
        b: Scores under the other setting, `(example, layer, head, query_pos)`.
        mask: True for real tokens, of shape `(example, query_pos)`.

    Returns:
        Cosines in [0, 1], of shape `(example, layer, head)`: all weights are positive, so chance is above 0,
        and a row of a single token scores 1. NaN where an example has no real token.

    Raises:
        ShapeError: The shapes do not match, or the mask is not boolean.

    Source:
        SimAM of arXiv:2212.10559v3, section 4.5, after softmax instead of before it (a departure).
    """
    keep = _over_heads(mask, a=a, b=b)
    weights_a, weights_b = (torch.where(keep, widened(scores), -torch.inf).softmax(-1) for scores in (a, b))
    return cosine(weights_a, weights_b).to(result_dtype(a, b))


def sim_am_delta(zsl: Tensor, icl: Tensor, ft: Tensor, mask: Tensor) -> Tensor:
    """Cosine between the changes of attention scores: cos(icl - zsl, ft - zsl) for each head.

    Args:
        zsl: Scores at the probe under ZSL, of shape `(example, layer, head, query_pos)`; entries at padding are
            ignored, even NaN.
        icl: The same under ICL, `(example, layer, head, query_pos)`.
        ft: The same under FT, `(example, layer, head, query_pos)`.
        mask: True for real tokens, of shape `(example, query_pos)`.

    Returns:
        Cosines in [-1, 1], of shape `(example, layer, head)`; NaN where a change is exactly zero.

    Raises:
        ShapeError: The shapes do not match, or the mask is not boolean.

    Source:
        arXiv:2311.07772, the corrected SimAM.
    """
    keep = _over_heads(mask, zsl=zsl, icl=icl, ft=ft)
    zsl_wide = widened(zsl)
    icl_change, ft_change = (_real(widened(scores) - zsl_wide, keep) for scores in (icl, ft))
    return cosine(icl_change, ft_change).to(result_dtype(zsl, icl, ft))


def direct_update(delta_W_icl: Tensor, delta_W_ft: Tensor) -> Tensor:
    """Cosine of the two weight updates, as matrices of the linear form, for each head.

    Args:
        delta_W_icl: Update by the demonstrations (`outer_product_update`), of shape `(..., d_v, d_k)`.
        delta_W_ft: Change of the head's linear form by finetuning, of shape `(..., d_v, d_k)`; leading axes
            broadcast.

    Returns:
        Cosines <dW_ICL, dW_FT> / (||dW_ICL|| ||dW_FT||) in [-1, 1], of shape `(...)`; NaN where an update is zero.

    Raises:
        ShapeError: The matrices differ in shape, or the leading axes do not broadcast.

    Source:
        dW_ICL and dW_FT of arXiv:2212.10559v3, equations (12) and (13); the paper compares their effects, this
        function the matrices.
    """
    if delta_W_icl.ndim < 2 or delta_W_icl.shape[-2:] != delta_W_ft.shape[-2:]:
        raise ShapeError(
            "delta_W_icl and delta_W_ft must both be (..., d_v, d_k); given "
            f"{tuple(delta_W_icl.shape)} and {tuple(delta_W_ft.shape)}."
        )
    return cosine(delta_W_icl.flatten(-2), delta_W_ft.flatten(-2))


def _over_heads(mask: Tensor, **scores: Tensor) -> Tensor:
    """The mask with axes for layers and heads, after a check of the shapes."""
    require_same_shape("example layer head query_pos", **scores)
    name, first = next(iter(scores.items()))
    expected = (first.shape[0], first.shape[-1])
    if mask.dtype != torch.bool or mask.shape != expected:
        raise ShapeError(
            f"mask must be boolean, True for real tokens, and (example, query_pos) = {expected} for {name} of shape "
            f"{tuple(first.shape)}; given {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return rearrange(mask, "example query_pos -> example 1 1 query_pos")


def _real(x: Tensor, keep: Tensor) -> Tensor:
    """Entries at padding set to zero."""
    return torch.where(keep, x, 0.0)


def _centred(scores: Tensor, keep: Tensor) -> Tensor:
    """Rows minus their mean over real tokens."""
    # Subtracting one entry first makes a constant row exactly zero; its rounded mean would leave a residue of 1e-17.
    largest = torch.where(keep, scores, -torch.inf).amax(-1, keepdim=True) if scores.shape[-1] else scores
    shifted = _real(scores - largest, keep)
    return _real(shifted - shifted.sum(-1, keepdim=True) / keep.sum(-1, keepdim=True), keep)
