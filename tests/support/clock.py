"""A clock that tests hold."""


class FakeClock:
    """Stands in for a store's clock, in seconds since the epoch."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now
