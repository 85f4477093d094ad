"""Throughput per request unit: a container's RU/s walked level by level, and at each the rate that it bears."""
