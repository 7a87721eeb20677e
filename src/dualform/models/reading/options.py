"""Options for reading a model. This module does not import torch, so that settings can be checked quickly."""

from typing import Literal

Probe = Literal["prompt", "label0"]
"""The token at which activations are recorded: the one that predicts the label (`prompt`), or the last token of the
first label word (`label0`), as in the code released with arXiv:2212.10559."""

ChatSetting = Literal["off", "auto", "on"]
"""Whether prompts are written as chats by the tokenizer's chat template."""
