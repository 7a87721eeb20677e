"""Selection: how much choosing a seed, an order or a learning rate flatters."""
