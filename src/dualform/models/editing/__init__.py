"""Changes to a model: weight deltas and adapters inside a context manager, momentum attention, block-wise forwards."""
