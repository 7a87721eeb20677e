"""Where a model keeps what: found by probing the model, and verified."""
