"""What may be chosen about learning. Without torch, so that settings can be checked before it is loaded."""

from typing import Literal

LossOn = Literal["all", "label"]
"""Which tokens of a training sequence are learned: all of them (the paper's choice) or the label word's."""

LARGEST_RATE = 1e37
"""Largest learning rate: float32 ends at 3e38, and AdamW's first step takes ten times the rate."""

FEWEST_TEXTS = 8
"""Fewer calibration texts are refused: a map of hundreds of inputs would be fitted to a handful of prompts."""
