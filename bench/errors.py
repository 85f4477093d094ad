"""What can be wrong with a measurement before it begins."""


class BenchMisused(ValueError):
    """The measurement that was asked for makes no sense; raised before anything is sent."""
