"""Throughput per request unit: a container's RU/s raised level by level, and at each the rate that it sustains."""
