"""What dualform's own controls are, written down apart from the code that makes them."""

FLOORS = (
    *("random", "random_update", "position_shift", "shuffled_labels", "random_labels", "other_task"),
    *("untrained", "embeddings", "chance"),
)
CEILINGS = ("icl_order", "ft_order")
PAIRS = {
    "position_shift": ("zsl", "position_shift", "ft"),
    "shuffled_labels": ("zsl", "shuffled_labels", "ft"),
    "random_labels": ("zsl", "random_labels", "ft"),
    "other_task": ("zsl", "other_task", "ft"),
    "other_demonstrations": ("zsl", "icl", "other_demonstrations"),
    "random_update": ("zsl", "icl", "random_update"),
    "icl_order": ("zsl", "icl", "icl_order"),
    "ft_order": ("zsl", "ft", "ft_order"),
    "batch": ("zsl", "icl", "batch"),
    "batch_sequential": ("zsl", "ft", "batch"),
    "lcgd": ("zsl", "icl", "lcgd"),
    "value_one_layer": ("zsl", "icl", "value_one_layer"),
    "mlp": ("zsl", "icl", "mlp"),
    "untrained": ("untrained.zsl", "untrained.icl", "untrained.ft"),
    "embeddings": ("embeddings.zsl", "embeddings.icl", "embeddings.ft"),
}
"""Control -> whose answers are before, first and second."""
