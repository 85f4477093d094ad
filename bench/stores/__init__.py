"""The comparison of stores: set-up, rounds, publishing and report; the reference architecture's test is a preset."""
