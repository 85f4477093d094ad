"""Prometheus metrics, OpenTelemetry traces and metrics, and the access log."""
