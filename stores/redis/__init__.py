"""The Redis store: every row a plain string, lookups of one turn as one command."""
