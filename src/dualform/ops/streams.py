"""Independent random streams from one seed, each identified by its purpose."""

import hashlib

import torch


def stream_seed(purpose: str, seed: int, *more: int) -> int:
    """The 32-bit seed of `stream`, for code that can only draw from the global generator; same arguments."""
    hashed = hashlib.sha256(repr((purpose, seed, *more)).encode()).digest()
    return int.from_bytes(hashed[:4], "big")


def stream(purpose: str, seed: int, *more: int) -> torch.Generator:
    """A generator on the CPU, the same for the same arguments in every run, and unrelated for any others.

    torch's CPU generator is a Mersenne Twister that is seeded with the low 32 bits of `manual_seed` and drops the rest
    without a word: `2**32 + seed` gives the very numbers of `seed`. So what is to be told apart is hashed, and 32 bits
    of the hash are taken knowingly. Two of n streams are then the same with a chance of about n^2 / 2^33.

    Args:
        purpose: What is drawn, such as `weights`, `training`, `test` or `tuning`.
        seed: Of a run.
        more: What else tells streams of a purpose and seed apart, such as a number of points.
    """
    return torch.Generator().manual_seed(stream_seed(purpose, seed, *more))
