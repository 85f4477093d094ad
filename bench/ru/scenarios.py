"""What a sweep requests: signed requests, and scenarios that each measure one effect beside the planner's prediction.

Requests are signed beforehand, once for each item, as a signature is good for 15 minutes. The arithmetic of predictions
is that of `bench.planner`; a scenario only gives it its inputs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from bench.errors import BenchMisused
from bench.loadgen.keys import HotSet, InTurn, Keys, Zipf
from bench.loadgen.load import Requests
from bench.planner.demand import cache_hits, predict_ru, skew_factor, write_charge
from bench.ru.sandbox import AccountSandbox, Items, fullest_share
from stores.cosmos.charges import Charges
from stores.cosmos.requests import KeySigner, RequestBuilder, partition_key_header
from stores.cosmos.url import AUTOSCALE_STEP, KEY, Address, Throughput

UPSERT = b"content-type: application/json\r\nprefer: return=minimal\r\nx-ms-documentdb-is-upsert: True\r\n"
# What a cache has seen before the first request that counts: enough for its content to be steady.
WARM_DRAWS = 20_000
# Draws by which the skew of keys and the hit rate of a cache are counted.
COUNTED_DRAWS = 200_000
# Shares: of the reads that go to the hot key, of the keys that the cache holds, of the RU/s that a publish takes.
HOT, CACHED, PUBLISHED = 0.3, 0.1, 0.2
ZIPF = 0.99
# RU/s of the container beside the one that is read.
BESIDE_RU = 400
EVENTUAL, STRONG = "Eventual", "Strong"


@dataclass(frozen=True, slots=True)
class MissedKeys:
    """Of *keys* those that miss a cache of so many entries with least recently used eviction."""

    keys: Keys
    entries: int

    def __iter__(self) -> Iterator[str]:
        """Yield the keys that miss."""
        return (key for key, hit in simulate_cache(self.keys, self.entries) if not hit)

    def hit_rate(self, draws: int) -> float:
        """Count which share of so many draws hits."""
        return sum(hit for _, hit in islice(simulate_cache(self.keys, self.entries), draws)) / draws


def simulate_cache(keys: Iterable[str], entries: int) -> Iterator[tuple[str, bool]]:
    """Yield each key with whether it hits, once the cache is warm."""
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
class KeyedRequests:
    """Requests made beforehand, in the order in which their keys are drawn; see `bench.loadgen.load.Requests`."""

    by_key: Mapping[str, bytes]
    keys: Keys | MissedKeys

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

    def reads(self, container: str, items: Items, consistency: str = EVENTUAL) -> dict[str, bytes]:
        """Make a point read of each item, signed now."""
        requests = self.builder(consistency)
        return {name: requests.point_read(container, name) for name in items.ids}

    def in_turn(self, container: str, items: Items, consistency: str = EVENTUAL) -> KeyedRequests:
        """Make requests that read the items in turn: even over partitions, no key more popular than another."""
        return KeyedRequests(self.reads(container, items, consistency), Keys(items.ids, InTurn()))

    def upserts(self, container: str, items: Items) -> dict[str, bytes]:
        """Make a write of each item, signed now."""
        requests, link = (
            self.builder(self.address.consistency),
            f"dbs/{self.address.database}/colls/{container}",
        )
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
        item_bytes: int = 0,
        **load: Any,  # noqa: ANN401 -- what `predict_ru` takes
    ) -> Scenario:
        """Make a scenario of what is offered at a rate; *load* is what the prediction takes besides the rate."""
        size = item_bytes or self.items.size

        def predict(rate: float) -> float:
            partitions = self.items.parts
            return predict_ru(self.charges, rate, size, partitions=partitions, throttled=self.throttled, **load)

        return Scenario(name, inputs, self.ru, offer, predict)

    @property
    def partitions(self) -> str:
        """How many partitions there are, in words."""
        return f"{self.items.parts} partition{'s' * (self.items.parts > 1)}"


def all_scenarios(setup: Setup) -> Iterator[Callable[[], Scenario]]:
    """Yield each scenario as a function that prepares it."""
    for size_kb, count in ((4, 200), (16, 100), (64, 60)):
        yield partial(sized, setup, size_kb, count)
    yield partial(steady, setup, setup.items, "strong consistency", consistency=STRONG)
    yield partial(one_hot_key, setup)
    yield partial(zipf, setup)
    yield partial(cached, setup)
    yield partial(published_in_place, setup)
    yield partial(published_under_skew, setup)
    yield partial(published_beside, setup)
    yield partial(autoscaled, setup)


def steady(setup: Setup, items: Items, name: str, *, consistency: str = EVENTUAL) -> Scenario:
    """Read every item in turn."""
    strong = consistency == STRONG
    inputs = f"{items.size_kb} KB{', strong' if strong else ''}, even over {setup.partitions}"
    requests = setup.requests.in_turn(setup.container, items, consistency)
    return setup.scenario(name, inputs, partial(Offer, requests), items.size, strong=strong)


def sized(setup: Setup, size_kb: int, count: int) -> Scenario:
    """Read larger items."""
    items = Items(size_kb, count, setup.items.parts)
    setup.sandbox.fill(setup.container, items)
    return steady(setup, items, f"items of {size_kb} KB")


def one_hot_key(setup: Setup) -> Scenario:
    """Send a share of all requests to one key."""
    keys = Keys(setup.items.ids, HotSet(HOT, 1 / setup.items.count))
    skew = skew_factor(HOT, setup.items.parts)
    return _skewed(setup, keys, f"one key with {HOT:.0%} of the reads", skew, f"hot_share {HOT:g}")


def zipf(setup: Setup) -> Scenario:
    """Draw keys by Zipf's law; the prediction takes the skew over partitions that was counted in the keys."""
    keys, parts = Keys(setup.items.ids, Zipf(ZIPF)), setup.items.parts
    share = fullest_share(list(islice(keys, COUNTED_DRAWS)), parts)
    inputs = f"fullest partition {share:.1%}, as counted in the keys"
    return _skewed(setup, keys, f"zipf {ZIPF:g} over {setup.items.count} keys", share * parts, inputs)


def cached(setup: Setup) -> Scenario:
    """Leave out what an in-process cache would have answered; the prediction takes the hit rate from the skew.

    How unevenly partitions get what misses is counted, as for `zipf`.
    """
    items = setup.items
    entries = round(items.count * CACHED)
    missed = MissedKeys(Keys(items.ids, Zipf(ZIPF)), entries)
    requests = KeyedRequests(setup.requests.reads(setup.container, items), missed)
    miss_rate = 1 - missed.hit_rate(COUNTED_DRAWS)
    hit_rate = cache_hits(items.count, ZIPF, entries).hit_rate
    fullest = fullest_share(list(islice(missed, COUNTED_DRAWS)), items.parts)
    return setup.scenario(
        f"a cache of {entries} lists before zipf {ZIPF:g}",
        f"hit rate {hit_rate:.1%} by Che's approximation, counted {1 - miss_rate:.1%}",
        lambda rate: Offer(requests, rate * miss_rate),
        hit_rate=hit_rate,
        skew=fullest * items.parts,
    )


def published_in_place(setup: Setup) -> Scenario:
    """Replace items of the very container that is read, as the reference implementation publishes."""
    name = "a publish into the same container"
    return _published(setup, setup.container, name, setup.items, setup.ru, in_place=True)


def published_under_skew(setup: Setup) -> Scenario:
    """Replace items of the container of which one key gets a share of all reads: both at once."""
    keys = Keys(setup.items.ids, HotSet(HOT, 1 / setup.items.count))
    name = f"the same, one key with {HOT:.0%} of the reads"
    return _published(setup, setup.container, name, setup.items, setup.ru, in_place=True, keys=keys)


def published_beside(setup: Setup) -> Scenario:
    """Write into a container of its own, as hotplate publishes."""
    beside, items = setup.sandbox.create(Throughput(BESIDE_RU)), Items(1, setup.items.count, 1)
    setup.sandbox.fill(beside, items)
    name = "a publish into a container of its own"
    return _published(setup, beside, name, items, BESIDE_RU, in_place=False)


def autoscaled(setup: Setup) -> Scenario:
    """Read from an autoscale container, whose most is what counts."""
    most = autoscale_of(setup.ru)
    items = Items(1, setup.items.count, most.initial_partitions)
    container = setup.sandbox.create(most)
    setup.sandbox.fill(container, items)
    there = replace(setup, container=container, items=items, ru=most.ru)
    return steady(there, items, f"autoscale, {most.ru // 10:,} … {most.ru:,} RU/s")


def autoscale_of(ru: int) -> Throughput:
    """Return the autoscale range whose most is nearest to *ru* from below, or the least there is."""
    return Throughput(max(AUTOSCALE_STEP, ru // AUTOSCALE_STEP * AUTOSCALE_STEP), autoscale=True)


def _skewed(setup: Setup, keys: Keys, name: str, skew: float, inputs: str) -> Scenario:
    requests = KeyedRequests(setup.requests.reads(setup.container, setup.items), keys)
    inputs = f"{inputs}, {setup.partitions}"
    return setup.scenario(name, inputs, partial(Offer, requests), skew=skew)


def _published(
    setup: Setup,
    container: str,
    name: str,
    written: Items,
    ru: int,
    *,
    in_place: bool,
    keys: Keys | None = None,
) -> Scenario:
    write_ru = write_charge(setup.charges, written.size, replaced=True)
    writes_s = PUBLISHED * ru / write_ru
    reads = setup.requests.in_turn(setup.container, setup.items)
    if keys is not None:
        reads = KeyedRequests(setup.requests.reads(setup.container, setup.items), keys)
    writes = KeyedRequests(setup.requests.upserts(container, written), Keys(written.ids, InTurn()))
    return setup.scenario(
        name,
        f"{writes_s:g} lists/s replaced {'here' if in_place else 'elsewhere'}, {write_ru:g} RU each",
        lambda rate: Offer(MixedRequests(reads, writes, writes_s / (rate + writes_s)), rate + writes_s),
        skew=1.0 if keys is None else skew_factor(HOT, setup.items.parts),
        writes_s=writes_s if in_place else 0.0,
        replaced=True,
    )
