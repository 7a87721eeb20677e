"""The laboratory: in-context regression with small models, where theory gives the numbers."""
