"""Ways to adapt a model to demonstrations, and what they make."""
