"""Changes to a model for the length of a block: weight deltas, adapters, momentum, block-wise forwards."""
