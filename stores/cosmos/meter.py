"""Who counts what attempts come to: nobody, until somebody asks for it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stores.store import Observer


class Relay:
    """Hands on to `meter` what drivers tell; lives as long as its store."""

    def __init__(self, meter: "Observer | None" = None) -> None:
        self.meter = meter

    def charged(self, ru: float) -> None:
        """See `Observer`."""
        if self.meter is not None:
            self.meter.charged(ru)

    def failed(self, kind: str) -> None:
        """See `Observer`."""
        if self.meter is not None:
            self.meter.failed(kind)
