"""What the engine owes, measured: ratios to the machine's own arithmetic and to a public tool, all in one run.

One file a question. A ratio compares two things timed side by side, so that it means the same on a slow machine and
a fast one; nothing is asserted about seconds.
"""
