"""Small models trained from scratch: regression tasks, exact predictors, corpora and pretraining."""
