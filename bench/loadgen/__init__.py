"""The open-loop load generator: a schedule, connections, and histograms of what came of each request."""
