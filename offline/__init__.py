"""From interactions to a release: load, split, train, evaluate, rank, publish."""
