"""Independent random streams from one seed, each identified by its purpose."""

import hashlib

import torch


def stream_seed(purpose: str, seed: int, *more: int) -> int:
    """The 32-bit seed of `stream` (same arguments), for code that can only draw from the global generator."""
    hashed = hashlib.sha256(repr((purpose, seed, *more)).encode()).digest()
    return int.from_bytes(hashed[:4], "big")


def stream(purpose: str, seed: int, *more: int) -> torch.Generator:
    """A generator on the CPU: equal arguments give equal streams in every run, other arguments independent ones.

    torch's CPU generator is a Mersenne Twister that uses only the low 32 bits of `manual_seed` and silently ignores the
    rest: `2**32 + seed` gives the same numbers as `seed`. The arguments are therefore hashed, and 32 bits of the hash
    are the seed. Two of n streams then coincide with a probability of about n^2 / 2^33.

    Args:
        purpose: What is drawn, such as `weights`, `training`, `test` or `tuning`.
        seed: Seed of the run.
        more: Further values that distinguish streams of the same purpose and seed, such as a number of points.
    """
    return torch.Generator().manual_seed(stream_seed(purpose, seed, *more))
