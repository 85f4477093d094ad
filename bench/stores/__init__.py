"""The comparison of stores: set-up, rounds, publishing, the report, and the reference architecture's test as a preset."""
