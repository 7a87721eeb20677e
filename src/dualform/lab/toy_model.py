"""A small Llama trained on sequences of a `TokenWorld` to learn from its context.

It lies between the laboratory's attention layer with constructed weights, where every step of in-context learning is
known, and a pretrained language model: it has softmax attention, norms and MLPs, but is trained on a single task. The
same code measures all three.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dualform.lab.token_world import BOS, EOS, IS, TokenWorld
from dualform.lab.training import AfterStep, Training, fit
from dualform.models.export.checkpoint import atomic_folder
from dualform.ops.streams import stream, stream_seed

_SPREAD = 0.2
"""Standard deviation of initial weights. With the usual 0.02, meant for wide models, so narrow a model would take
thousands of steps before its loss falls."""


def token_sequences(world: TokenWorld, n: int, examples: int, generator: torch.Generator) -> Tensor:
    """Sequences in the encoder's format of demonstrations, each with its own labelling rule and distinct words.

    The rule is a random vector w: a word's label is the sign of the inner product of w and the word's vector.

    Args:
        world: Words and their vectors.
        n: Number of sequences.
        examples: Number of examples in each sequence.
        generator: Source of randomness.

    Returns:
        Token ids, `(sequence, 1 + 4 * examples)`: the opening token, then word, `is`, label word and separator for each
        example.
    """
    w = torch.randn(n, world.dimension, 1, generator=generator, dtype=world.x.dtype)
    words = torch.rand(n, len(world.x), generator=generator).argsort(dim=1)[:, :examples]
    labels = ((world.x[words] @ w)[..., 0] > 0).long()
    bos, eos, asking = (world.vocabulary.index(word) for word in (BOS, EOS, IS))
    ids = torch.full((n, 1 + 4 * examples), bos)
    ids[:, 1::4] = words + world.first_word
    ids[:, 2::4] = asking
    ids[:, 3::4] = torch.tensor(world.label_ids)[labels]
    ids[:, 4::4] = eos
    return ids


def train_toy(
    world: TokenWorld,
    *,
    steps: int,
    seed: int,
    examples: int = 12,
    batch: int = 32,
    learning_rate: float = 2e-3,
    width: int = 48,
    layers: int = 2,
    heads: int = 4,
    after_step: AfterStep = lambda step: None,
) -> PreTrainedModel:
    """A model trained to predict each word's label from the examples before it.

    The embeddings of words start with their vectors in the first features, so that these need not be learned.

    Args:
        world: Words and their vectors.
        steps: Training steps.
        seed: Seed of weights and sequences.
        examples: Number of examples in a sequence.
        batch: Number of sequences in a step.
        learning_rate: Highest learning rate (see `Training`).
        width: Width of the model.
        layers: Number of blocks.
        heads: Number of heads in each block.
        after_step: Called after each step.

    Raises:
        TrainingError: If the loss or its gradient is NaN or infinite.
    """
    config = LlamaConfig(
        vocab_size=len(world.vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max(256, 5 * examples),
        initializer_range=_SPREAD,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed("weights", seed))
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        words = model.model.embed_tokens.weight
        # The other features must be small, or the norms would hide the length of the vector.
        words[world.first_word :] *= 0.1
        words[world.first_word :, : world.dimension] = world.x.to(words.dtype)
    generator = stream("training", seed)
    training = Training(steps, batch, learning_rate)

    def loss(step: int) -> Tensor:
        ids = token_sequences(world, batch, examples, generator)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, 2::4]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 3::4].flatten())

    fit(model.train().parameters(), loss, training, after_step=after_step)
    return model.eval()


def save_toy(model: PreTrainedModel, world: TokenWorld, folder: Path) -> Path:
    """Write model and tokenizer as a complete checkpoint for `load_model`; a failure leaves no folder."""
    with atomic_folder(folder, overwrite=False) as unfinished:
        model.save_pretrained(unfinished)
        world.tokenizer().save_pretrained(unfinished)
    return folder
