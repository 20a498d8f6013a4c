"""PyTorch twins of the networks, from the same description: oracle and speed baseline."""
