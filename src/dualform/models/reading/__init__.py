"""Prompts in, label log-probabilities and a trace of the inside out; the shared prefix is encoded once."""
