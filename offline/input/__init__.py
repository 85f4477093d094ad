"""Input of a training."""
