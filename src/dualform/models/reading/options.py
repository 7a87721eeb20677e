"""What may be chosen about how a model is read. Without torch, so that settings can be checked before it is loaded."""

from typing import Literal

Probe = Literal["prompt", "label0"]
"""Where the inside is read: at the token that predicts the label, or, as the code released with arXiv:2212.10559
does, at the last token of the first label word."""
