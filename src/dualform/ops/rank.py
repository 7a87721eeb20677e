"""Attention of ICL and of FT to demonstration tokens, and the rank correlation of the two (Kendall's tau).

ICL attends to the demonstrations in its prompt. FT has none in its prompt; its attention to a training token is the
inner product of the attention queries at that token during training and at the probe. The probe is the one token of the
query example at which activations are compared: by default the last token of the prompt, which predicts the label.

In exact arithmetic, softmax keeps the order of its inputs. But scores summed over heads differ by hundreds of nats, so
all but a few masses underflow to exactly 0, which gives thousands of false ties. Rank correlations are therefore
computed from the inputs of softmax (`icl_logits`, `ft_logits`) and, for whole demonstrations, from the logarithm of
their mass (`demonstration_log_mass`), which rank in the same way without the ties. The masses themselves (`icl_mass`,
`ft_mass`, `per_demonstration`) are for display.
"""

import torch
from einops import einsum
from scipy.stats import kendalltau
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.cosine import require_same_shape, widened

# Up to this length, all pairs of all rows are compared at once; longer rows are passed to scipy one by one.
_LONGEST_BY_PAIRS = 128
# Bounds the memory of one comparison to some ten megabytes.
_PAIRS_AT_ONCE = 2**20


def attention_mass(scores: Tensor, dim: int = -1) -> Tensor:
    """Attention weights: softmax of scores.

    Args:
        scores: Pre-softmax scores, of shape `(..., pos)`.
        dim: The axis that sums to 1.

    Returns:
        Weights in [0, 1], of shape `(..., pos)`; NaN where all scores are -inf.

    Source:
        arXiv:2212.10559v3, equation (10).
    """
    return scores.softmax(dim)


def icl_logits(demo_scores: Tensor) -> Tensor:
    """ICL's attention to demonstration tokens before softmax: scores summed over heads.

    Args:
        demo_scores: Pre-softmax scores from the probe to demonstration tokens, of shape
            `(example, layer, head, demo_pos)`.

    Returns:
        Sums, of shape `(example, layer, demo_pos)`.

    Raises:
        ShapeError: The tensor has another number of axes.

    Source:
        m_ICL of arXiv:2212.10559v3, section 4.6.
    """
    require_same_shape("example layer head demo_pos", demo_scores=demo_scores)
    return demo_scores.sum(-2)


def icl_mass(demo_scores: Tensor) -> Tensor:
    """ICL's attention to demonstration tokens: softmax over tokens of the scores summed over heads.

    Args:
        demo_scores: Pre-softmax scores from the probe to demonstration tokens, of shape
            `(example, layer, head, demo_pos)`.

    Returns:
        Mass m_ICL of each token, summing to 1, of shape `(example, layer, demo_pos)`.

    Raises:
        ShapeError: The tensor has another number of axes.

    Source:
        m_ICL of arXiv:2212.10559v3, section 4.6. The paper's text describes the sum over heads only; the softmax
        is in the released code and does not change the ranking.
    """
    return attention_mass(icl_logits(demo_scores))


def ft_logits(train_q: Tensor, q: Tensor) -> Tensor:
    """FT's attention to training tokens before softmax: Q'^T q, summed over heads.

    Args:
        train_q: Attention queries Q' at the training tokens, recorded during finetuning, of shape
            `(layer, demo_pos, head, d_head)`.
        q: The finetuned model's attention query at the probe, of shape `(example, layer, head, d_head)`.

    Returns:
        Inner products of the head-concatenated queries, of shape `(example, layer, demo_pos)`.

    Raises:
        ShapeError: The layers, heads or widths do not match.

    Source:
        m_FT of arXiv:2212.10559v3, section 4.6: sum over heads of Q'^T q, without scaling. A factor does not change
        the order of tokens, but it does change that of whole demonstrations: unscaled products differ by hundreds of
        nats, so that the mass of a demonstration is that of its highest token (see `models.structure.query_scale`).
    """
    if train_q.ndim != 4 or q.ndim != 4 or (train_q.shape[0], *train_q.shape[2:]) != tuple(q.shape[1:]):
        raise ShapeError(
            "train_q (layer, demo_pos, head, d_head) and q (example, layer, head, d_head) must agree in layer, head "
            f"and d_head; given {tuple(train_q.shape)} and {tuple(q.shape)}."
        )
    return einsum(train_q, q, "layer demo_pos head d_head, example layer head d_head -> example layer demo_pos")


def ft_mass(train_q: Tensor, q: Tensor) -> Tensor:
    """FT's attention to training tokens: softmax over tokens of Q'^T q.

    Args:
        train_q: Attention queries Q' at the training tokens, recorded during finetuning, of shape
            `(layer, demo_pos, head, d_head)`.
        q: The finetuned model's attention query at the probe, of shape `(example, layer, head, d_head)`.

    Returns:
        Mass m_FT of each token, summing to 1, of shape `(example, layer, demo_pos)`.

    Raises:
        ShapeError: The layers, heads or widths do not match.

    Source:
        m_FT of arXiv:2212.10559v3, section 4.6. The paper's text describes the sum over heads only; the softmax
        is in the released code and does not change the ranking.
    """
    return attention_mass(ft_logits(train_q, q))


def per_demonstration(mass: Tensor, demonstration_of_token: Tensor, n_demonstrations: int) -> Tensor:
    """Mass of whole demonstrations: the sum over their tokens.

    Args:
        mass: Mass of each token, of shape `(..., demo_pos)`.
        demonstration_of_token: Index of each token's demonstration, of shape `(demo_pos)`; -1 for a token that belongs
            to none (a separator), which is left out.
        n_demonstrations: Number of demonstrations.

    Returns:
        Sums, of shape `(..., demo)`; 0 for a demonstration without tokens.

    Raises:
        ShapeError: The numbers of tokens differ, or an index is not below `n_demonstrations`.

    Source:
        The ranking of arXiv:2212.10559v3, section 4.6, by demonstration instead of by token. It is not in the paper
        but in the code released with it.
    """
    owner = _owners(mass, demonstration_of_token, n_demonstrations)
    # Column 0 collects tokens that belong to no demonstration.
    sums = mass.new_zeros(*mass.shape[:-1], n_demonstrations + 1)
    return sums.index_add_(-1, owner, mass)[..., 1:]


def demonstration_log_mass(logits: Tensor, demonstration_of_token: Tensor, n_demonstrations: int) -> Tensor:
    """Logarithm of the mass of whole demonstrations, up to a constant for each row, for ranking.

    If logits are large, the mass of most demonstrations underflows to 0, which gives ties; its logarithm does not.

    Args:
        logits: Logits of each token, of shape `(..., demo_pos)`.
        demonstration_of_token: Index of each token's demonstration, of shape `(demo_pos)`; -1 for a token that belongs
            to none (a separator), which is left out.
        n_demonstrations: Number of demonstrations.

    Returns:
        Log of summed exponentials, of shape `(..., demo)`, nats; -inf for a demonstration without tokens.

    Raises:
        ShapeError: The numbers of tokens differ, or an index is not below `n_demonstrations`.

    Source:
        `per_demonstration`, without the underflow that the released code has.
    """
    owner = _owners(logits, demonstration_of_token, n_demonstrations)
    members = [logits[..., owner == demonstration] for demonstration in range(1, n_demonstrations + 1)]
    if not members:
        return logits.new_zeros(*logits.shape[:-1], 0)
    return torch.stack([tokens.logsumexp(-1) for tokens in members], dim=-1)


def kendall_tau_b(a: Tensor, b: Tensor) -> Tensor:
    """Kendall's rank correlation over the last axis.

    Args:
        a: Numbers to rank, of shape `(..., demo_pos)`; -inf and inf are allowed.
        b: Numbers to rank, of shape `(..., demo_pos)`.

    Returns:
        tau-b in [-1, 1], of shape `(...)`, in the dtype of the inputs; NaN where one row is constant (such as a
        single number) or contains a NaN.

    Raises:
        ShapeError: The two shapes differ.

    Source:
        arXiv:2212.10559v3, section 4.6, writes tau-a, (P_c - P_d) / (N (N - 1) / 2); tau-b equals it without
        ties, and reaches 1 with them (Kendall, Rank Correlation Methods, 1948). The same as `scipy.stats.kendalltau`.
    """
    require_same_shape("... demo_pos", a=a, b=b)
    n_ranked = a.shape[-1]
    dtype = a.dtype if a.is_floating_point() else torch.get_default_dtype()
    if n_ranked < 2:
        return a.new_full(a.shape[:-1], torch.nan, dtype=dtype)
    rows_a, rows_b = (widened(side.detach()).cpu().reshape(-1, n_ranked) for side in (a, b))
    taus = _short_rows_tau_b(rows_a, rows_b) if n_ranked <= _LONGEST_BY_PAIRS else _long_rows_tau_b(rows_a, rows_b)
    return taus.to(a.device, dtype).reshape(a.shape[:-1])


def _short_rows_tau_b(rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """tau-b of all rows at once, from every pair of ranked numbers, `(row)`; faster than a call of scipy for each."""
    rows_at_once = max(1, _PAIRS_AT_ONCE // rows_a.shape[-1] ** 2)
    return torch.cat(
        [_tau_b_by_pairs(a, b) for a, b in zip(rows_a.split(rows_at_once), rows_b.split(rows_at_once), strict=True)]
    )


def _tau_b_by_pairs(rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """Kendall's definition: concordant minus discordant pairs, over the geometric mean of the untied pairs."""
    order_a, order_b = (_order_of_pairs(rows) for rows in (rows_a, rows_b))
    concordance = (order_a * order_b).sum(-1, dtype=torch.int64)
    untied_a, untied_b = (order.abs().sum(-1, dtype=torch.int64) for order in (order_a, order_b))
    # Two square roots, because the product of the counts would be rounded for long rows. 0 / 0 gives the NaN of a
    # constant row.
    taus = concordance / untied_a.double().sqrt() / untied_b.double().sqrt()
    return taus.clamp(-1, 1).masked_fill((rows_a.isnan() | rows_b.isnan()).any(-1), torch.nan)


def _order_of_pairs(rows: Tensor) -> Tensor:
    """1 where the first of a pair is larger, -1 where it is smaller, 0 in a tie, `(row, pair)`."""
    first, second = torch.triu_indices(rows.shape[-1], rows.shape[-1], offset=1)
    left, right = rows[:, first], rows[:, second]
    # The sign of the difference would be NaN for two infinities.
    return (left > right).to(torch.int8) - (left < right).to(torch.int8)


def _long_rows_tau_b(rows_a: Tensor, rows_b: Tensor) -> Tensor:
    """tau-b row by row, by scipy's sorting, `(row)`."""
    # The p-value is not used; "asymptotic" is the cheapest one for scipy to find.
    rows = zip(rows_a.numpy(), rows_b.numpy(), strict=True)
    return torch.tensor([kendalltau(a, b, method="asymptotic").statistic for a, b in rows], dtype=torch.float64)


def _owners(values: Tensor, demonstration_of_token: Tensor, n_demonstrations: int) -> Tensor:
    """Indices of the tokens' demonstrations plus 1, and 0 for none, after a check."""
    if demonstration_of_token.shape != values.shape[-1:]:
        raise ShapeError(
            "demonstration_of_token must be (demo_pos), one number a token; given "
            f"{tuple(demonstration_of_token.shape)} for tokens of shape {tuple(values.shape)}."
        )
    owner = demonstration_of_token.to(values.device, torch.int64)
    outside = owner[(owner < -1) | (owner >= n_demonstrations)]
    if len(outside):
        raise ShapeError(
            f"demonstration_of_token holds {int(outside[0])}; expected -1 (none) to {n_demonstrations - 1}, because "
            f"n_demonstrations is {n_demonstrations}."
        )
    return owner + 1
