"""Which modules share a weight: what is changed in one of them is changed in all, and is one change."""

from torch import nn

from dualform.models.compat import own_parameters


def tied_linears(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Modules that multiply by the same weight, such as the block that several of Zamba's layers share.

    Args:
        model: Any model.

    Returns:
        Name of each module with a two-dimensional weight that others have too -> the names of all of them, the first
        one first. A module under two names is named once.
    """
    # Offloading breaks the identity of tied weights; transformers remembers which they were.
    source_of: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups: dict[object, list[str]] = {}
    for name, module in model.named_modules():
        weight = own_parameters(module).get("weight")
        if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        full = f"{name}.weight"
        groups.setdefault(source_of.get(full, full) if weight.is_meta else id(weight), []).append(name)
    return {name: tuple(names) for names in groups.values() if len(names) > 1 for name in names}
