"""What knows OpenTelemetry's SDK, an extra: loaded where telemetry is on."""
