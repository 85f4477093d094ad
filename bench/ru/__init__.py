"""Throughput per request unit: the rate that a container sustains at each level of RU/s."""
