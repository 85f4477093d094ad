"""The HTTP service: lookups, fallback, metrics. Never imports the offline job."""
