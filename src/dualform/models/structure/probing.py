"""Token ids for probing a model."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualform.models.loading.offloading import input_device


def n_ids(model: PreTrainedModel) -> int:
    """Number of rows of the embedding: the model can read ids from 0 to one less."""
    return int(model.get_input_embeddings().weight.shape[0])


def ordinary_ids(model: PreTrainedModel, n: int, start: int = 0) -> list[int]:
    """`n` ids spread over the vocabulary, without the first four, which are often special."""
    size = n_ids(model)
    return [(start + i) * 7919 % max(size - 4, 1) + min(4, size - 1) for i in range(n)]


def probe_tokens(model: PreTrainedModel, n: int = 5) -> Tensor:
    """The first `n` ordinary ids as a batch of one row, `(1, pos)`, on the model's input device."""
    return torch.tensor([ordinary_ids(model, n)], device=input_device(model))
