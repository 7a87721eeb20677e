"""Stability: how much accuracy depends on which demonstrations were drawn, and in which order."""
