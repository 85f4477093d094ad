"""Errors of measurements."""


class BenchMisused(ValueError):
    """Invalid options; nothing was sent."""


class BenchFailed(RuntimeError):
    """The measurement failed; for example, nothing answers."""
