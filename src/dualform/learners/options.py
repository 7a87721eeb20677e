"""Options of learners, without torch, so that settings can be checked before it is imported."""

from typing import Literal

LossOn = Literal["all", "label"]
"""Which tokens of a training sequence count in the loss: all of them (as in the paper) or those of the label word."""

LARGEST_RATE = 1e37
"""Largest learning rate: the largest float32 is 3e38, and AdamW's first step takes ten times the rate."""

FEWEST_TEXTS = 8
"""Smallest number of calibration texts; fewer would be too little data for a map with hundreds of inputs."""
