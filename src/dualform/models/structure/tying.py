"""Finding modules that share a weight, so that a change in one of them changes all."""

from torch import nn

from dualform.models.compat import own_parameters


def tied_linears(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Groups of modules with the same two-dimensional weight, such as the block that several layers of Zamba share.

    Returns:
        Name of each module in a group -> names of all modules of the group, in the model's order. A module with two
        names is listed once. Embeddings are left out.
    """
    # Offloaded tied weights are no longer the same tensor, but transformers keeps the names of tied weights.
    source_of: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups: dict[object, list[str]] = {}
    for name, module in model.named_modules():
        weight = own_parameters(module).get("weight")
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        full = f"{name}.weight"
        groups.setdefault(source_of.get(full, full) if weight.is_meta else id(weight), []).append(name)
    return {name: tuple(names) for names in groups.values() if len(names) > 1 for name in names}
