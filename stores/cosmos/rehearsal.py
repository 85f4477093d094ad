"""A publish worked out instead of done: every request unit that it spends, and the time that its pace takes.

It is exact where nothing disturbs: no answer takes time, no request is refused, no replica is behind. What answers do
take is caught up with by the pace, up to a tenth of a second each time that the publish waits for one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson

from stores import catalogue as catalogue_record
from stores import catalogue as changes
from stores.catalogue import LEASE_S, Catalogue, ReleaseId
from stores.cosmos.batches import LAGS_S, METAS
from stores.cosmos.charges import Charges
from stores.cosmos.items import CATALOGUE, item_bytes, keys_name, name_of, to_item
from stores.cosmos.pace import Pace
from stores.cosmos.spending import Spending
from stores.cosmos.writer import DRAFT, SEALED
from stores.keys import META, pack
from stores.store import Row

RENEWED_S = LEASE_S / 3
"""How often `stores.lifecycle` renews the lease of what is being written."""

STAMP = "0" * 16
"""Stands for tokens, which are drawn by chance and all of this length."""


class Rows:
    """What the items of a release spend, and when; lives as long as one forecast.

    The budget is that of the real publish, on a clock that only moves when the budget waits.
    """

    def __init__(self, charges: Charges, rate_ru: float) -> None:
        self.rows = self.payload_bytes = 0
        self.now_s = self.states_ru = 0.0
        self._charges = charges
        self._pace = Pace(lambda: self.now_s, rate_ru)
        self._spending = Spending(charges)
        self._state_ru = charges.read(item_bytes(DRAFT))
        self._missing_ru = charges.not_found(strong=False)
        self._metas = False
        self._last_ru = self._manifest_ru = 0.0

    def begin(self) -> None:
        """See that nothing was acknowledged before."""
        self._state()
        self._look_for_batches()

    def put(self, rows: Sequence[Row]) -> None:
        """Count rows in that are put together."""
        self.rows += len(rows)
        self.payload_bytes += sum(len(key.encode()) + len(value) for key, value in rows)
        before_ru = self._spending.writing_ru
        self._spending.put(rows)
        spent_ru, keys_ru = self._spending.writing_ru - before_ru, 0.0
        metas = [row.key for row in rows if row.key.startswith(META)]
        if metas and not self._metas:
            self._metas = True
            keys = to_item(keys_name(METAS, 1), pack(metas))
            keys_ru = self._charges.create(item_bytes(keys), 0)
            self._pay(spent_ru - keys_ru)
            self._look_for_batches()
            self._pay(keys_ru)
        else:
            self._pay(spent_ru)
        key, value = rows[-1]
        read_ru = self._charges.read(item_bytes(to_item(name_of(key), value)))
        if key.startswith(META):
            self._manifest_ru = read_ru
        else:
            self._last_ru = read_ru

    def seal(self) -> None:
        """Seal what was put, the manifest last; at once, out of no budget."""
        self.states_ru += self._state_ru + self._charges.replace(item_bytes(DRAFT), item_bytes(SEALED), 0, 0)

    def verify(self) -> None:
        """Read all back."""
        self._state()
        for _ in range(2):  # that there is no further batch in either series
            self._pay(self._missing_ru)
            self.states_ru += self._missing_ru
        self._pay(self._spending.verifying_ru - self._last_ru)
        self._pay(self._last_ru)  # whoever comes after this waits until it is paid, the end does not

    def activate(self, settles_s: float) -> None:
        """Look at the release before it goes live, let new throughput settle, and look again after."""
        self._state()
        self.now_s += settles_s
        self._state()

    @property
    def writing_ru(self) -> float:
        """Return what rows and the keys of their batches cost."""
        return self._spending.writing_ru

    @property
    def verifying_ru(self) -> float:
        """Return what reading them back costs; the manifest is read by itself as well."""
        return self._spending.verifying_ru + self._manifest_ru

    def _look_for_batches(self) -> None:
        """Find none, and look again, for a replica may be behind."""
        self._pay(self._missing_ru)
        for pause_s in LAGS_S:
            self.now_s += pause_s
            self._pay(self._missing_ru)
        self.states_ru += (1 + len(LAGS_S)) * self._missing_ru

    def _state(self) -> None:
        self._pay(self._state_ru)
        self.states_ru += self._state_ru

    def _pay(self, ru: float) -> None:
        self.now_s += self._pace.wait_s()
        self._pace.take(ru)


class Ledger:
    """What reading and swapping the catalogue spends; lives as long as one forecast."""

    def __init__(self, charges: Charges, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.spent_ru = 0.0
        self._charges = charges
        self._began = catalogue.now

    def look(self, times: int = 1) -> None:
        """Read it; while there is no container that would hold it, that costs nothing."""
        if self.catalogue.generation:
            self.spent_ru += times * self._charges.read(_size(self.catalogue))

    def change(self, how: Callable[[Catalogue], Catalogue], at_s: float) -> Catalogue:
        """Read it and put what *how* makes of it in its place, so many seconds after the beginning."""
        self.look()
        old = replace(self.catalogue, now=float(int(self._began + at_s)))
        new = how(old)
        if new != old:
            new = changes.succeed(old, new, token=STAMP, store_id=STAMP)
            after = _size(new)
            made = self._charges.create(after, 0)
            self.spent_ru += self._charges.replace(_size(old), after, 0, 0) if old.generation else made
            self.catalogue = new
        return new

    def renew(self, release: ReleaseId, until_s: float) -> None:
        """Renew a draft's lease as long as it is written."""
        at_s = RENEWED_S
        while at_s < until_s:
            self.change(lambda found: changes.renew(found, release), at_s)
            at_s += RENEWED_S


def _size(catalogue: Catalogue) -> int:
    return item_bytes({"id": CATALOGUE, "catalogue": orjson.loads(catalogue_record.dump(catalogue))})
