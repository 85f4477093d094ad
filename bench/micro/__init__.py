"""Micro-benchmarks; the one corner of the bench that may import every room."""
