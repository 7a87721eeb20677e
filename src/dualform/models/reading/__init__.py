"""Running a model on prompts: label log-probabilities and recorded activations; a shared prefix is encoded once."""
