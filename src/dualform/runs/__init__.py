"""A run's folder, a grid of runs, where they execute."""
