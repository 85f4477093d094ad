"""Measures from outside: the load generator and the figures."""
