"""Drills: faults on a test instance under load, and whether what the runbook promises holds meanwhile."""
