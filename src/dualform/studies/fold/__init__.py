"""Fold: one prompt written into the weights of one model, for good."""
