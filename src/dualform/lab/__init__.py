"""Small models trained from nothing, on text that one can name."""
