"""Input of a training: files, columns, interactions and their matrix."""
