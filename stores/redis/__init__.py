"""The Redis store: every row a plain string, the lookups of one iteration of the event loop as one command."""
