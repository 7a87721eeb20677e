"""Finding the parts of a model (projections, residual blocks, MLP inputs) by probing it."""
