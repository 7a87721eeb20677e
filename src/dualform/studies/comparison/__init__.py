"""Compare: one model adapted to the same demonstrations in every way, looked into, and compared."""
