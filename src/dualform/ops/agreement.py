"""Similarity of two settings' outputs: which examples they answer correctly, and their distributions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import cosine, require_same_shape, result_dtype, widened


@dataclass(frozen=True)
class Rec2FTP:
    """Recall of finetuning's corrections by in-context learning, with the counts and references to interpret it.

    Ratios are in [0, 1] and NaN if their denominator is 0.
    """

    value: float
    """Of the examples that FT corrected, the share that ICL corrected too: numerator / denominator."""
    numerator: int
    """N(FT right, ICL right, ZSL wrong)."""
    denominator: int
    """N(FT right, ZSL wrong)."""
    chance: float
    """P(ICL right | ZSL wrong), the expectation of `value` if FT and ICL corrected examples independently."""
    chance_numerator: int
    """N(ICL right, ZSL wrong)."""
    chance_denominator: int
    """N(ZSL wrong)."""
    lift: float
    """value - chance, in [-1, 1]; NaN if either is NaN."""
    reverse: float
    """Of the examples that only ZSL answers correctly and FT does not, the share that ICL answers wrongly too."""
    reverse_numerator: int
    """N(FT wrong, ICL wrong, ZSL right)."""
    reverse_denominator: int
    """N(FT wrong, ZSL right)."""
    jaccard: float
    """Jaccard similarity of the two sets of examples whose correctness changed from ZSL: intersection / union."""
    jaccard_numerator: int
    """Examples changed by both FT and ICL."""
    jaccard_denominator: int
    """Examples changed by FT or ICL."""


def rec2ftp(zsl_right: Tensor, icl_right: Tensor, ft_right: Tensor) -> Rec2FTP:
    """Of the examples that finetuning corrected, the share that in-context learning corrected too.

    Args:
        zsl_right: True where the zero-shot prediction is right, boolean, of shape `(example)`.
        icl_right: The same under ICL, `(example)`.
        ft_right: The same under FT, `(example)`.

    Returns:
        Ratios with their counts. `value` is NaN, with a denominator of 0, if finetuning corrected nothing.

    Raises:
        ShapeError: The shapes differ, or a tensor is not boolean.

    Source:
        Rec2FTP, arXiv:2212.10559v3, section 4.3. Chance level, lift, reverse and Jaccard are
        dualform's own: if ICL is nearly always right, Rec2FTP is high whatever finetuning did.
    """
    require_same_shape("example", zsl_right=zsl_right, icl_right=icl_right, ft_right=ft_right)
    for name, right in (("zsl_right", zsl_right), ("icl_right", icl_right), ("ft_right", ft_right)):
        if right.dtype != torch.bool:
            raise ShapeError(f"{name} must be boolean, True where the prediction is right; given {right.dtype}.")
    fixed = ft_right & ~zsl_right
    broken = ~ft_right & zsl_right
    ft_changed, icl_changed = ft_right ^ zsl_right, icl_right ^ zsl_right

    numerator, denominator = _count(fixed & icl_right), _count(fixed)
    chance_numerator, chance_denominator = _count(icl_right & ~zsl_right), _count(~zsl_right)
    reverse_numerator, reverse_denominator = _count(broken & ~icl_right), _count(broken)
    jaccard_numerator, jaccard_denominator = _count(ft_changed & icl_changed), _count(ft_changed | icl_changed)
    value, chance = _ratio(numerator, denominator), _ratio(chance_numerator, chance_denominator)
    return Rec2FTP(
        value=value,
        numerator=numerator,
        denominator=denominator,
        chance=chance,
        chance_numerator=chance_numerator,
        chance_denominator=chance_denominator,
        lift=value - chance,
        reverse=_ratio(reverse_numerator, reverse_denominator),
        reverse_numerator=reverse_numerator,
        reverse_denominator=reverse_denominator,
        jaccard=_ratio(jaccard_numerator, jaccard_denominator),
        jaccard_numerator=jaccard_numerator,
        jaccard_denominator=jaccard_denominator,
    )


def label_agreement(a: Tensor, b: Tensor) -> Tensor:
    """Whether two settings predict the same label; its mean is the share of agreement.

    Args:
        a: Label log-probabilities (or any scores), of shape `(example, label)`.
        b: The same under another setting, `(example, label)`.

    Returns:
        1 where the label with the highest score is the same (of equal scores the first counts), else 0, of shape
        `(example)`; NaN where a row contains a NaN.

    Raises:
        ShapeError: The shapes differ.

    Source:
        dualform's own; compare "output agreement" in arXiv:2310.08540.
    """
    require_same_shape("... label", a=a, b=b)
    same = (a.argmax(-1) == b.argmax(-1)).to(result_dtype(a, b))
    return same.masked_fill(_any_nan(a, b), torch.nan)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Total variation distance between two distributions: half the sum of |p - q|.

    Args:
        log_p: Log-probabilities in nats up to a constant, -inf for impossible, of shape `(example, label)`; each
            row is normalised here.
        log_q: The same under another setting, `(example, label)`.

    Returns:
        Distances in [0, 1], of shape `(example)`; NaN where all entries of a row are NaN or -inf.

    Raises:
        ShapeError: The shapes differ.

    Source:
        Elementary; compare "output agreement" in arXiv:2310.08540.
    """
    require_same_shape("... label", log_p=log_p, log_q=log_q)
    distance = (widened(log_p).softmax(-1) - widened(log_q).softmax(-1)).abs().sum(-1) / 2
    return distance.clamp(0, 1).to(result_dtype(log_p, log_q))


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p || q), nats.

    Args:
        log_p: Log-probabilities in nats up to a constant, -inf for impossible, of shape `(example, label)`; each
            row is normalised here.
        log_q: The same under another setting, `(example, label)`.

    Returns:
        Divergences in [0, inf], of shape `(example)`: inf where p is positive and q is 0; NaN where all entries
        of a row are NaN or -inf.

    Raises:
        ShapeError: The shapes differ.

    Source:
        Kullback and Leibler, On Information and Sufficiency, 1951; compare "output agreement" in arXiv:2310.08540.
    """
    require_same_shape("... label", log_p=log_p, log_q=log_q)
    log_p_wide, log_q_wide = widened(log_p).log_softmax(-1), widened(log_q).log_softmax(-1)
    p = log_p_wide.exp()
    # 0 log 0 is 0 by convention, but NaN in floating point.
    terms = torch.where(p == 0, 0.0, p * (log_p_wide - log_q_wide))
    return terms.sum(-1).clamp(min=0).to(result_dtype(log_p, log_q))


def prediction_entropy(log_p: Tensor) -> Tensor:
    """Entropy of a distribution, nats.

    Args:
        log_p: Log-probabilities in nats up to a constant, -inf for impossible, of shape `(example, label)`; each
            row is normalised here.

    Returns:
        Entropies in [0, log n_labels], of shape `(example)`; NaN where all entries of a row are NaN or -inf.

    Raises:
        ShapeError: There is no label axis.

    Source:
        Shannon, A Mathematical Theory of Communication, 1948.
    """
    require_same_shape("... label", log_p=log_p)
    return torch.special.entr(widened(log_p).softmax(-1)).sum(-1).abs().to(result_dtype(log_p))


def top_k_overlap(logits_a: Tensor, logits_b: Tensor, k: int = 10) -> Tensor:
    """Share of common tokens among the k most probable tokens of two settings.

    Args:
        logits_a: Logits or log-probabilities, of shape `(..., vocab)`.
        logits_b: The same under another setting, `(..., vocab)`.
        k: Size of each set.

    Returns:
        |common| / k in [0, 1], of shape `(...)`; NaN where a row contains a NaN.

    Raises:
        ConfigError: `k` is not between 1 and the number of tokens.
        ShapeError: The shapes differ.

    Source:
        Token overlap, arXiv:2310.08540.
    """
    require_same_shape("... vocab", logits_a=logits_a, logits_b=logits_b)
    _, common = _top_k_of_a_and_common(logits_a, logits_b, k)
    share = common.sum(-1).to(result_dtype(logits_a, logits_b)) / k
    return share.masked_fill(_any_nan(logits_a, logits_b), torch.nan)


def overlap_cosine(logits_a: Tensor, logits_b: Tensor, k: int = 10) -> Tensor:
    """Cosine between two settings' probabilities of the tokens that are among the k most probable of both.

    It compares the weights of the common tokens but ignores their number, so it should be reported together with
    `top_k_overlap`. A single common token always scores 1.

    Args:
        logits_a: Logits or log-probabilities, of shape `(..., vocab)`.
        logits_b: The same under another setting, `(..., vocab)`.
        k: Size of each set.

    Returns:
        Cosines in [0, 1], of shape `(...)`; NaN where no token is common or a row contains a NaN.

    Raises:
        ConfigError: `k` is not between 1 and the number of tokens.
        ShapeError: The shapes differ.

    Source:
        Overlap cosine similarity, arXiv:2310.08540, restricted to the common tokens; their number
        is measured by `top_k_overlap` alone.
    """
    require_same_shape("... vocab", logits_a=logits_a, logits_b=logits_b)
    tokens, common = _top_k_of_a_and_common(logits_a, logits_b, k)
    # A cosine ignores scale. Probabilities normalised over the common tokens do not underflow.
    p, q = (
        torch.where(common, widened(logits.gather(-1, tokens)), -torch.inf).softmax(-1)
        for logits in (logits_a, logits_b)
    )
    value = cosine(p, q).to(result_dtype(logits_a, logits_b))
    return value.masked_fill(_any_nan(logits_a, logits_b), torch.nan)


def _top_k_of_a_and_common(logits_a: Tensor, logits_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most probable tokens of a, and whether each is among the k most probable of b; both `(..., k)`."""
    n_tokens = logits_a.shape[-1]
    if not 1 <= k <= n_tokens:
        raise ConfigError(f"k is {k}; expected 1 to {n_tokens}, the number of tokens in the vocabulary.")
    tokens_a, tokens_b = logits_a.topk(k, dim=-1).indices, logits_b.topk(k, dim=-1).indices
    return tokens_a, (tokens_a.unsqueeze(-1) == tokens_b.unsqueeze(-2)).any(-1)


def _any_nan(a: Tensor, b: Tensor) -> Tensor:
    return (a.isnan() | b.isnan()).any(-1)


def _count(chosen: Tensor) -> int:
    return int(chosen.sum())


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
