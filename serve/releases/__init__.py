"""Served releases and the canary."""
