"""Authentication, scopes, rate limits and TLS."""
