"""What a sweep requests: signed requests, and scenarios that each measure one effect beside the planner's prediction.

Requests are signed beforehand, once for each item, as a signature is good for 15 minutes. The arithmetic of predictions
is that of `bench.planner`; a scenario only gives it its inputs.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from bench.errors import BenchMisused
from bench.loadgen.keys import HotSet, InTurn, Keys
from bench.loadgen.load import Requests
from bench.planner.demand import predict_ru, skew_factor, write_charge
from bench.ru.sandbox import AccountSandbox, Items
from stores.cosmos.charges import Charges
from stores.cosmos.requests import KeySigner, RequestBuilder, partition_key_header
from stores.cosmos.url import AUTOSCALE_STEP, KEY, Address, Throughput

UPSERT = b"content-type: application/json\r\nprefer: return=minimal\r\nx-ms-documentdb-is-upsert: True\r\n"
# Shares: of the reads that go to the hot key, and of the RU/s that a publish takes.
HOT, PUBLISHED = 0.3, 0.2
EVENTUAL, STRONG = "Eventual", "Strong"


@dataclass(frozen=True, slots=True)
class KeyedRequests:
    """Requests made beforehand, in the order in which their keys are drawn; see `bench.loadgen.load.Requests`."""

    by_key: Mapping[str, bytes]
    keys: Keys

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """Yield requests; host and headers are in them."""
        del host, headers
        return map(self.by_key.__getitem__, self.keys)


@dataclass(frozen=True, slots=True)
class MixedRequests:
    """Reads with writes among them: a share of all requests, as evenly spaced as they can be."""

    reads: KeyedRequests
    writes: KeyedRequests
    share_of_writes: float

    def rendered(self, host: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """See `KeyedRequests`."""
        reads, writes = self.reads.rendered(host, headers), self.writes.rendered(host, headers)
        due = 0.0
        while True:
            due += self.share_of_writes
            if due >= 1:
                due -= 1
                yield next(writes)
            else:
                yield next(reads)


@dataclass(frozen=True, slots=True)
class SignedRequests:
    """Makes the requests to one account; lives as long as that is measured."""

    address: Address
    clock: Callable[[], float] = time.time

    def reads(self, container: str, items: Items) -> dict[str, bytes]:
        """Make a point read of each item, signed now."""
        requests = self.builder(EVENTUAL)
        return {name: requests.point_read(container, name) for name in items.ids}

    def in_turn(self, container: str, items: Items) -> KeyedRequests:
        """Make requests that read the items in turn: even over partitions, no key more popular than another."""
        return KeyedRequests(self.reads(container, items), Keys(items.ids, InTurn()))

    def upserts(self, container: str, items: Items) -> dict[str, bytes]:
        """Make a write of each item, signed now."""
        requests, link = self.builder(self.address.consistency), f"dbs/{self.address.database}/colls/{container}"
        return {
            body["id"]: requests.build(
                "POST",
                "docs",
                link,
                f"{link}/docs/",
                headers=partition_key_header(body["id"]) + UPSERT,
                body=orjson.dumps(body),
            )
            for body in items.bodies()
        }

    def require_key(self) -> None:
        """Raise BenchMisused, which says what to do, for an account without a key."""
        self.builder(self.address.consistency)

    def builder(self, consistency: str) -> RequestBuilder:
        """Return what signs requests; BenchMisused, which says what to do, for an account without a key."""
        address = self.address
        if address.key is None:
            raise BenchMisused(
                f"to create and drop a container of its own this needs the key of {address.shown}; give it as "
                f"{KEY} or in a file as {KEY}_FILE"
            )
        host = urlsplit(address.endpoint).netloc
        return RequestBuilder(host, address.database, consistency, KeySigner(address.key, address.shown), self.clock)


class Offer(NamedTuple):
    """What goes over the wire for a rate of users' reads: these requests, so many a second."""

    requests: Requests
    wire_rate: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to read a container: what is offered at a rate, and what the planner predicts."""

    name: str
    inputs: str
    """The inputs of the prediction, in words."""

    ru: int
    usable_ru: float
    """Of `ru` what can be spent before the first partition has nothing left."""

    predicted: float
    """The users' reads a second that are accepted, at most."""

    offer: Callable[[float], Offer]


@dataclass(frozen=True, slots=True)
class Setup:
    """The account, the container, the items of 1 KB in it, and its RU/s."""

    sandbox: AccountSandbox
    charges: Charges
    container: str
    items: Items
    ru: int

    @property
    def requests(self) -> SignedRequests:
        """What makes requests to the account."""
        return SignedRequests(self.sandbox.address)

    def scenario(
        self, name: str, inputs: str, offer: Callable[[float], Offer], *, skew: float = 1.0, writes_s: float = 0.0
    ) -> Scenario:
        """Make a scenario of what is offered at a rate; *writes_s* lists a second are replaced meanwhile."""
        parts = self.items.parts
        fixed, each = (
            predict_ru(self.charges, rate, self.items.size, skew=skew, writes_s=writes_s, replaced=True)
            for rate in (0.0, 1.0)
        )
        inputs = f"{inputs}, {parts} partition{'s' * (parts > 1)}"
        return Scenario(name, inputs, self.ru, self.ru / skew, (self.ru - fixed) / (each - fixed), offer)


def in_turn(setup: Setup) -> Scenario:
    """Read every item in turn."""
    requests = setup.requests.in_turn(setup.container, setup.items)
    return setup.scenario("all keys in turn", f"{setup.items.size_kb} KB", partial(Offer, requests))


def one_hot_key(setup: Setup) -> Scenario:
    """Send a share of all requests to one key."""
    keys = Keys(setup.items.ids, HotSet(HOT, 1 / setup.items.count))
    requests = KeyedRequests(setup.requests.reads(setup.container, setup.items), keys)
    name, skew = f"one key with {HOT:.0%} of the reads", skew_factor(HOT, setup.items.parts)
    return setup.scenario(name, f"hot_share {HOT:g}", partial(Offer, requests), skew=skew)


def published_in_place(setup: Setup) -> Scenario:
    """Replace items of the very container that is read, as the reference implementation publishes."""
    items = setup.items
    write_ru = write_charge(setup.charges, items.size, replaced=True)
    writes_s = PUBLISHED * setup.ru / write_ru
    reads = setup.requests.in_turn(setup.container, items)
    writes = KeyedRequests(setup.requests.upserts(setup.container, items), Keys(items.ids, InTurn()))
    return setup.scenario(
        "a publish into the same container",
        f"{writes_s:g} lists/s replaced, {write_ru:g} RU each",
        lambda rate: Offer(MixedRequests(reads, writes, writes_s / (rate + writes_s)), rate + writes_s),
        writes_s=writes_s,
    )


def autoscaled(setup: Setup) -> Scenario:
    """Read from an autoscale container, whose most is what counts."""
    most = autoscale_of(setup.ru)
    items = Items(1, setup.items.count, most.initial_partitions)
    container = setup.sandbox.create(most)
    setup.sandbox.fill(container, items)
    even = in_turn(replace(setup, container=container, items=items, ru=most.ru))
    return replace(even, name=f"autoscale, {most.ru // 10:,} … {most.ru:,} RU/s")


EFFECTS = (one_hot_key, published_in_place, autoscaled)


def autoscale_of(ru: int) -> Throughput:
    """Return the autoscale range whose most is nearest to *ru* from below, or the least there is."""
    return Throughput(max(AUTOSCALE_STEP, ru // AUTOSCALE_STEP * AUTOSCALE_STEP), autoscale=True)
