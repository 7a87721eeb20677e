"""Folding: what the quality of a fold depends on."""
