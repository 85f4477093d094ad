"""What a sweep requests: signed requests, and scenarios that each measure one effect beside the planner's prediction.

Requests are signed beforehand, once for each item, as a signature is good for 15 minutes. The arithmetic of predictions
is that of `bench.planner`; a scenario only gives it its inputs.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple
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
# RU/s of the container beside the one that is read.
BESIDE_RU = 400
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
    """What goes over the wire for a rate of users' requests: these requests, so many a second."""

    requests: Requests
    wire_rate: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """One effect: what is offered at a rate, and the RU/s that the planner predicts for it; `ru` is what there is."""

    name: str
    inputs: str
    """The inputs of the prediction, in words."""

    ru: int
    offer: Callable[[float], Offer]
    predict: Callable[[float], float]

    @property
    def expected(self) -> float:
        """The rate at which the prediction is all there is; it is linear in the rate."""
        fixed = self.predict(0.0)
        return (self.ru - fixed) / (self.predict(1.0) - fixed)


@dataclass(frozen=True, slots=True)
class Setup:
    """The account, the container and the items of 1 KB that scenarios read."""

    sandbox: AccountSandbox
    requests: SignedRequests
    charges: Charges
    container: str
    items: Items
    ru: int
    throttled: float
    """The share of requests that the objective lets be refused."""

    def scenario(
        self,
        name: str,
        inputs: str,
        offer: Callable[[float], Offer],
        **load: Any,  # noqa: ANN401 -- what `predict_ru` takes
    ) -> Scenario:
        """Make a scenario of what is offered at a rate; *load* is what the prediction takes besides the rate."""
        load = {"partitions": self.items.parts, "throttled": self.throttled, **load}
        return Scenario(
            name, inputs, self.ru, offer, lambda rate: predict_ru(self.charges, rate, self.items.size, **load)
        )

    @property
    def partitions(self) -> str:
        """How many partitions there are, in words."""
        return f"{self.items.parts} partition{'s' * (self.items.parts > 1)}"


def all_scenarios(setup: Setup) -> Iterator[Callable[[], Scenario]]:
    """Yield each scenario as a function that prepares it."""
    for prepare in (one_hot_key, published_in_place, published_beside, autoscaled):
        yield partial(prepare, setup)


def one_hot_key(setup: Setup) -> Scenario:
    """Send a share of all requests to one key."""
    keys = Keys(setup.items.ids, HotSet(HOT, 1 / setup.items.count))
    requests = KeyedRequests(setup.requests.reads(setup.container, setup.items), keys)
    name, inputs = f"one key with {HOT:.0%} of the reads", f"hot_share {HOT:g}, {setup.partitions}"
    return setup.scenario(name, inputs, partial(Offer, requests), skew=skew_factor(HOT, setup.items.parts))


def published_in_place(setup: Setup) -> Scenario:
    """Replace items of the very container that is read, as the reference implementation publishes."""
    return _published(setup, setup.container, "a publish into the same container", setup.items, setup.ru)


def published_beside(setup: Setup) -> Scenario:
    """Write into a container of its own, as hotplate publishes."""
    beside, items = setup.sandbox.create(Throughput(BESIDE_RU)), Items(1, setup.items.count, 1)
    setup.sandbox.fill(beside, items)
    return _published(setup, beside, "a publish into a container of its own", items, BESIDE_RU)


def autoscaled(setup: Setup) -> Scenario:
    """Read from an autoscale container, whose most is what counts."""
    most = autoscale_of(setup.ru)
    items = Items(1, setup.items.count, most.initial_partitions)
    container = setup.sandbox.create(most)
    setup.sandbox.fill(container, items)
    there = replace(setup, container=container, items=items, ru=most.ru)
    requests = setup.requests.in_turn(container, items)
    name = f"autoscale, {most.ru // 10:,} … {most.ru:,} RU/s"
    return there.scenario(name, f"even over {there.partitions}", partial(Offer, requests))


def autoscale_of(ru: int) -> Throughput:
    """Return the autoscale range whose most is nearest to *ru* from below, or the least there is."""
    return Throughput(max(AUTOSCALE_STEP, ru // AUTOSCALE_STEP * AUTOSCALE_STEP), autoscale=True)


def _published(setup: Setup, container: str, name: str, written: Items, ru: int) -> Scenario:
    write_ru = write_charge(setup.charges, written.size, replaced=True)
    writes_s = PUBLISHED * ru / write_ru
    in_place = container == setup.container
    reads = setup.requests.in_turn(setup.container, setup.items)
    writes = KeyedRequests(setup.requests.upserts(container, written), Keys(written.ids, InTurn()))
    return setup.scenario(
        name,
        f"{writes_s:g} lists/s replaced {'here' if in_place else 'elsewhere'}, {write_ru:g} RU each",
        lambda rate: Offer(MixedRequests(reads, writes, writes_s / (rate + writes_s)), rate + writes_s),
        writes_s=writes_s if in_place else 0.0,
        replaced=True,
    )
