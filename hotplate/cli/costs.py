"""Request units (RU), by which Cosmos DB charges: how many a publish spends, and their limit."""

from dataclasses import dataclass
from time import monotonic
from typing import Annotated

from hotplate.cli.terminal import out, store_url_or_default
from hotplate.stores.options import Flag
from hotplate.stores.store import ChargeCounter

MaxRu = Annotated[int | None, Flag("The RU/s to spend in Cosmos DB; by default ru= of the URL.", at_least=1)]


def limit_ru(url: str | None, max_ru: int | None) -> str | None:
    """Return the store's URL with the limit; StoreMisused for a store without request units."""
    from hotplate.stores.connect import with_max_ru  # loads the stores

    return url if max_ru is None else with_max_ru(store_url_or_default(url), max_ru)


@dataclass
class RequestUnitMeter(ChargeCounter):
    """Counts request units and 429s since the first charge; prints nothing for stores without request units."""

    began_at: float | None = None

    def charged(self, ru: float) -> None:
        """See `Observer`."""
        self.began_at = self.began_at or monotonic()
        super().charged(ru)

    @property
    def throttled(self) -> int:
        """Number of 429s."""
        return self.failures.count("throttled")

    @property
    def seconds(self) -> float:
        """Seconds since the first charge."""
        return 0.0 if self.began_at is None else monotonic() - self.began_at

    def progress(self) -> str:
        """Return the rate so far, for a progress bar."""
        return f"{self.ru / max(self.seconds, 1.0):,.0f} RU/s" if self.ru else ""

    def to_json(self) -> dict[str, object]:
        """Return the totals for `--json`."""
        if not self.ru:
            return {}
        return {
            "spent": {
                "request_units": round(self.ru, 2),
                "throttled": self.throttled,
                "seconds": round(self.seconds, 3),
            }
        }

    def print_totals(self, rows: int) -> None:
        """Print the totals, and the charge of a row."""
        if self.ru:
            out.print(
                f"{self.ru:,.0f} RU, {self.ru / max(rows, 1):.2f} for each row, read back once; "
                f"{self.throttled:,} refused (429)"
            )
