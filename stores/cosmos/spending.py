"""What publishing a release spends of its container's request units: every write, every read, by the coefficients."""

from collections.abc import Sequence

from stores.cosmos.batches import LAGS_S, METAS, ROWS
from stores.cosmos.charges import Charges
from stores.cosmos.items import item_bytes, keys_name, name_of, to_item
from stores.cosmos.writer import DRAFT, SEALED, chunks
from stores.keys import MANIFEST, pack
from stores.store import Row


class Spending:
    """Adds up, put by put, what `stores.lifecycle.publish` will spend; lives as long as one forecast.

    It is exact for a publish that nothing disturbs: no row is written twice, no answer lost, no replica behind.
    """

    def __init__(self, charges: Charges) -> None:
        self.writing_ru = charges.create(item_bytes(DRAFT), 0)
        self.verifying_ru = 0.0
        self._charges = charges
        self._manifest_ru = 0.0
        self._numbers = {ROWS: 0, METAS: 0}

    def put(self, rows: Sequence[Row]) -> None:
        """Count rows in that are put together; the last put is of the manifest alone."""
        charges = self._charges
        self.writing_ru += self._state_ru
        for series, chunk in chunks(rows):
            self._numbers[series] += 1
            name = keys_name(series, self._numbers[series])
            keys = item_bytes(to_item(name, pack([key for key, _ in chunk])))
            sizes = [item_bytes(to_item(name_of(key), value)) for key, value in chunk]
            self.writing_ru += sum(charges.create(size, 0) for size in (*sizes, keys))
            # A scan reads the keys once to learn how far they reach, and once more to read the rows.
            self.verifying_ru += sum(charges.read(size) for size in (*sizes, keys, keys))
            if chunk[-1].key == MANIFEST:
                self._manifest_ru = charges.read(sizes[-1])  # read by itself, before anything is verified

    @property
    def total_ru(self) -> float:
        """Return all of it, what is done once for each release included."""
        charges, states = self._charges, (item_bytes(DRAFT), item_bytes(SEALED))
        looked_for = 1 + len(LAGS_S)  # that there is no batch yet is made sure of
        found_out = sum(1 if number else looked_for for number in self._numbers.values())
        missing_ru = charges.not_found(strong=False) * (2 * looked_for + found_out)
        # The draft's state is read before the first put and for sealing, the release's for verifying and activating.
        once_ru = 5 * self._state_ru + charges.replace(*states, 0, 0)
        return self.writing_ru + self.verifying_ru + self._manifest_ru + missing_ru + once_ru

    @property
    def _state_ru(self) -> float:
        return self._charges.read(item_bytes(DRAFT))
