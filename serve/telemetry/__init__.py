"""Traces and metrics by OpenTelemetry: what is recorded of sampled requests, and how it leaves the service."""
