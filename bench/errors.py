"""Errors of measurements."""


class BenchMisused(ValueError):
    """Invalid options; raised before anything is sent."""


class BenchFailed(RuntimeError):
    """The measurement failed, for example because nothing answers."""
