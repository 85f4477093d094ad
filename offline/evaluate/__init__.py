"""Evaluation: splits, metrics, and comparison with baselines."""
