"""Request units (RU), by which Cosmos DB charges: how many a publish spends, and their limit."""

from time import monotonic
from typing import Annotated

from hotplate.cli.terminal import out, store_url_or_default
from hotplate.stores.options import Flag

MaxRu = Annotated[int | None, Flag("The RU/s to spend in Cosmos DB; by default ru= of the URL.", at_least=1)]


def limit_ru(url: str | None, max_ru: int | None) -> str | None:
    """Return the store's URL with the limit; StoreMisused for a store without request units."""
    from hotplate.stores.connect import with_max_ru  # loads the stores

    return url if max_ru is None else with_max_ru(store_url_or_default(url), max_ru)


class RequestUnitMeter:
    """Observer that counts request units and 429s; prints nothing for stores without request units."""

    def __init__(self) -> None:
        self.request_units = 0.0
        self.throttled = 0
        self._began_at: float | None = None

    def charged(self, ru: float) -> None:
        """Implement `Observer`."""
        self._began_at = self._began_at or monotonic()
        self.request_units += ru

    def failed(self, kind: str) -> None:
        """Implement `Observer`."""
        self.throttled += kind == "throttled"

    @property
    def seconds(self) -> float:
        """Seconds since the first charge."""
        return 0.0 if self._began_at is None else monotonic() - self._began_at

    def progress(self) -> str:
        """Return the rate so far, for a progress bar."""
        return f"{self.request_units / max(self.seconds, 1.0):,.0f} RU/s" if self.request_units else ""

    def to_json(self) -> dict[str, object]:
        """Return the totals for `--json`."""
        if not self.request_units:
            return {}
        return {
            "spent": {
                "request_units": round(self.request_units, 2),
                "throttled": self.throttled,
                "seconds": round(self.seconds, 3),
            }
        }

    def print_totals(self, rows: int) -> None:
        """Print the totals, and the charge of a row."""
        if self.request_units:
            out.print(
                f"{self.request_units:,.0f} RU, {self.request_units / max(rows, 1):.2f} for each row, read back once; "
                f"{self.throttled:,} refused (429)"
            )
