"""What can go wrong with a measurement: it made no sense, or it could not be made."""


class BenchMisused(ValueError):
    """The requested measurement makes no sense; raised before anything is sent."""


class BenchFailed(RuntimeError):
    """The measurement could not be made: nothing answers, or a process of the generator died."""
