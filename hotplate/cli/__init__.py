"""The front door: one command, `hotplate`, with one verb for each thing that a user does."""
