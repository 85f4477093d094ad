"""Served releases, and their comparison."""
