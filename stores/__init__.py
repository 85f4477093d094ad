"""The store contract, its backends, and the life of releases. Imports nothing of ours."""
