"""How many floating-point operations a forward takes: the bound that speed is measured against, and a cost."""

from transformers import PreTrainedModel

from dualform.models.anatomy import Anatomy, is_linear, row_axis


def forward_flops(model: PreTrainedModel, anatomy: Anatomy, own: int, prefix: int = 0, scored: int = 1) -> float:
    """Operations of one sequence's forward, with its prefix's keys and values at hand.

    Counts multiplications and additions of the linears, of query-key and probability-value products over the tokens
    really seen (causal, so half of the square), and of the output head at the scored tokens. Norms, activations and
    softmax are left out: they are bound by memory, not by arithmetic.

    Args:
        model: The model.
        anatomy: Its anatomy.
        own: Tokens that are read now.
        prefix: Tokens before them that were read earlier.
        scored: Tokens at which the head is applied.

    Returns:
        Floating-point operations.
    """
    head = model.get_output_embeddings()
    linears = sum(module.weight.numel() for module in model.modules() if is_linear(module) and module is not head)
    pairs = own * prefix + own * (own + 1) / 2
    attention = sum(4 * layer.n_heads * layer.d_head * pairs for layer in anatomy.layers)
    return 2.0 * linears * own + attention + 2.0 * head.weight.numel() * scored


def key_value_training_flops(
    model: PreTrainedModel, anatomy: Anatomy, tokens: int, scored: int, weight_gradients: bool = True
) -> float:
    """Operations of one step that trains W_K and W_V on one sequence: forward, backward, gradients of those two.

    The backward repeats the forward's products once for activations (twice for attention's own two products);
    gradients of weights are needed for W_K and W_V alone, and with `weight_gradients` off not for these either.
    """
    head = model.get_output_embeddings()
    linears = sum(module.weight.numel() for module in model.modules() if is_linear(module) and module is not head)
    trained = 0
    for layer in anatomy.layers:
        for rows in (layer.W_K, layer.W_V):
            if rows is not None and weight_gradients:
                module = model.get_submodule(rows.module)
                trained += len(rows.index) * module.get_parameter("weight").shape[1 - row_axis(module)]
    pairs = tokens * (tokens + 1) / 2
    attention = sum(4 * layer.n_heads * layer.d_head * pairs for layer in anatomy.layers)
    return tokens * (4.0 * linears + 2.0 * trained) + 3 * attention + 4.0 * head.weight.numel() * scored
