"""The requests of a sweep: signed beforehand, once for each item, as a signature is good for 15 minutes."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from urllib.parse import urlsplit

import orjson

from bench.errors import BenchMisused
from bench.loadgen.keys import Keys
from bench.ru.items import Items
from stores.cosmos.rest.requests import Requests as Signed
from stores.cosmos.rest.requests import keyed
from stores.cosmos.signing import KeySigner
from stores.cosmos.url import KEY, Address

UPSERT = b"content-type: application/json\r\nprefer: return=minimal\r\nx-ms-documentdb-is-upsert: True\r\n"
WARM_DRAWS = 20_000
"""What a cache has seen before the first request that counts: enough for its content to be what it stays."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Requests that were made beforehand, by key, in the order in which keys are drawn; see `bench.loadgen.load`."""

    by_key: Mapping[str, bytes]
    keys: Keys

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests; host and headers are in them."""
        del host, headers
        by_key = self.by_key
        for key in self.keys:
            yield by_key[key]

    def share(self, part: int) -> "Drawn":
        """See `bench.loadgen.requests`."""
        return replace(self, keys=self.keys.share(part))


@dataclass(frozen=True, slots=True)
class Mixed:
    """Reads with writes among them: a *share* of all requests, as evenly spaced as they can be."""

    reads: Drawn
    writes: Drawn
    share_of_writes: float

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Drawn`."""
        reads, writes = self.reads.rendered(host, headers), self.writes.rendered(host, headers)
        due = 0.0
        while True:
            due += self.share_of_writes
            if due >= 1:
                due -= 1
                yield next(writes)
            else:
                yield next(reads)

    def share(self, part: int) -> "Mixed":
        """See `bench.loadgen.requests`."""
        return replace(self, reads=self.reads.share(part), writes=self.writes.share(part))


@dataclass(frozen=True, slots=True)
class Missed:
    """Of the requests of *drawn* those that a cache of so many entries, least recently used out first, lets through."""

    drawn: Drawn
    entries: int

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `Drawn`."""
        del host, headers
        by_key = self.drawn.by_key
        for key in self.names():
            yield by_key[key]

    def names(self) -> Iterator[str]:
        """Yield the keys that are let through."""
        return (key for key, hit in cached(self.drawn.keys, self.entries) if not hit)

    def share(self, part: int) -> "Missed":
        """See `bench.loadgen.requests`."""
        return replace(self, drawn=self.drawn.share(part))

    def hit_rate(self, draws: int) -> float:
        """Count, over so many draws, which share of them the cache answers."""
        return sum(hit for _, hit in islice(cached(self.drawn.keys, self.entries), draws)) / draws


def cached(keys: Iterable[str], entries: int) -> Iterator[tuple[str, bool]]:
    """Yield each key with whether a cache, warm by now, holds it."""
    held = OrderedDict[str, None]()
    for place, key in enumerate(keys):
        hit = key in held
        held[key] = None
        held.move_to_end(key)
        if len(held) > entries:
            held.popitem(last=False)
        if place >= WARM_DRAWS:
            yield key, hit


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes requests to one account; lives as long as that is measured."""

    address: Address
    clock: Callable[[], float] = time.time

    def reads(self, container: str, items: Items, consistency: str) -> dict[str, bytes]:
        """Make a point read of each item, signed now."""
        signed = self._signed(consistency)
        return {name: signed.read(container, name) for name in items.ids}

    def upserts(self, container: str, items: Items) -> dict[str, bytes]:
        """Make a write of each item, signed now."""
        signed, owner = self._signed(self.address.consistency), f"dbs/{self.address.database}/colls/{container}"
        return {
            body["id"]: signed.ask(
                "POST", "docs", owner, f"{owner}/docs/", headers=keyed(body["id"]) + UPSERT, body=orjson.dumps(body)
            )
            for body in items.bodies()
        }

    def must_have_a_key(self) -> None:
        """Refuse an account without a key: BenchMisused says what to do."""
        self._signed(self.address.consistency)

    def _signed(self, consistency: str) -> Signed:
        address = self.address
        if address.key is None:
            raise BenchMisused(
                f"to make and drop a container of its own the sweep needs the key of {address.shown}; give it as {KEY} "
                f"or in a file as {KEY}_FILE"
            )
        host = urlsplit(address.endpoint).netloc
        return Signed(host, address.database, consistency, KeySigner(address.key, address.shown), self.clock)
