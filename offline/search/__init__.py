"""The search for the best engine and its parameters."""
