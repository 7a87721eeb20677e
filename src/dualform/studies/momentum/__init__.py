"""Momentum: models with momentum attention next to vanilla ones."""
