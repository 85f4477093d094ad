"""Store in Redis: one string per row, one command per iteration of the event loop."""
