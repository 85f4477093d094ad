"""The HTTP service: a reader over tiers of stores, its routes, processes and metrics. Never imports the offline job."""
