"""Who counts what attempts come to: nobody, until somebody asks for it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stores.store import Meter


class Relay:
    """Hands on to `meter` what drivers tell; lives as long as its store."""

    def __init__(self) -> None:
        self.meter: Meter | None = None

    def charged(self, ru: float) -> None:
        """See `Meter`."""
        if self.meter is not None:
            self.meter.charged(ru)

    def failed(self, kind: str) -> None:
        """See `Meter`."""
        if self.meter is not None:
            self.meter.failed(kind)
