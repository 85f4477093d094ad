"""Lists out of tiers of stores, and the HTTP service that answers with them. Never imports the offline job."""
