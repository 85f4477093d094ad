"""Drills: faults on a test instance under load, and whether the service keeps what the runbook promises."""
