"""The reference architecture's load test, made again against stores of ours, and the open-loop truth beside it."""
