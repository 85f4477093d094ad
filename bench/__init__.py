"""The load generator and the experiments."""
