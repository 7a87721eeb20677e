"""What work costs: floating-point operations, memory, and what this machine can do."""
