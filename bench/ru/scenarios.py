"""What else decides how much a request unit buys: each effect by itself, measured beside what the planner foretells.

The planner's arithmetic is that of `bench.planner`; a scenario only says with which inputs it is asked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from bench.loadgen.keys import HotSet, InTurn, Keys, Zipf
from bench.loadgen.load import Requests
from bench.planner.caching import che
from bench.planner.demand import predict_ru, write_charge
from bench.ru.ground import Ground
from bench.ru.items import Items, fullest
from bench.ru.requests import Drawn, Maker, Missed, Mixed
from bench.ru.trials import Offered
from stores.cosmos.charges import Charges
from stores.cosmos.throughput import AUTOSCALE_STEP, Throughput

HOT = 0.3
ZIPF = 0.99
CACHED = 0.1
"""The share of the keys that the cache of its scenario holds."""

PUBLISHED = 0.2
"""The share of the container's RU/s that the publish of its scenario asks for."""

BESIDE_RU = 400
COUNTED_DRAWS = 200_000
EVENTUAL, STRONG = "Eventual", "Strong"

Foretell = Callable[[float], float]
"""From a rate of users' requests to the RU/s that the planner says it needs."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One effect: what is offered at a rate, and what the planner says that it needs. `ru` is what it has."""

    name: str
    inputs: str
    """What the planner is told, in words."""

    ru: int
    offer: Callable[[float], Offered]
    foretell: Foretell

    @property
    def expected(self) -> float:
        """The rate at which the planner's need is all there is; its need is linear in the rate."""
        fixed = self.foretell(0.0)
        return (self.ru - fixed) / (self.foretell(1.0) - fixed)


@dataclass(frozen=True, slots=True)
class Field:
    """The ground and the containers of all scenarios; `base` has items of 1 KB."""

    ground: Ground
    maker: Maker
    charges: Charges
    container: str
    base: Items
    ru: int


def steady(field: Field, items: Items, name: str, *, ru: int, consistency: str = EVENTUAL) -> Scenario:
    """Read every item in turn: even over partitions, no key more popular than another."""
    drawn = _drawn(field, items, consistency)
    strong = consistency == STRONG

    def foretell(rate: float) -> float:
        return predict_ru(field.charges, rate, items.size, strong=strong)

    inputs = (
        f"{items.size_kb} KB{', strong' if strong else ''}, even over {items.parts} partition{'s' * (items.parts > 1)}"
    )
    return Scenario(name, inputs, ru, _whole(drawn), foretell)


def sized(field: Field, size_kb: int, count: int) -> Scenario:
    """Read larger items."""
    items = Items(size_kb, count, field.base.parts)
    field.ground.fill(field.container, items)
    return steady(field, items, f"items of {size_kb} KB", ru=field.ru)


def strong(field: Field) -> Scenario:
    """Read with strong consistency, on an account that allows it."""
    return steady(field, field.base, "strong consistency", ru=field.ru, consistency=STRONG)


def one_hot_key(field: Field) -> Scenario:
    """Send a share of all requests to one key."""
    items = field.base
    draw = HotSet(HOT, 1 / items.count)
    return _skewed(field, Keys(items.ids, draw), f"one key with {HOT:.0%} of the reads", HOT, f"hot_share {HOT:g}")


def zipf(field: Field) -> Scenario:
    """Draw keys by Zipf's law; the planner is told the skew over partitions that was counted in the keys."""
    keys, parts = Keys(field.base.ids, Zipf(ZIPF)), field.base.parts
    share = fullest(list(islice(keys, COUNTED_DRAWS)), parts)
    inputs = f"fullest partition {share:.1%}, as counted in the keys"
    return _skewed(field, keys, f"zipf {ZIPF:g} over {field.base.count} keys", excess(share, parts), inputs)


def cached(field: Field) -> Scenario:
    """Leave out what an in-process cache would have answered; the planner foretells the hit rate from the skew.

    How unevenly partitions get what misses is counted, as for `zipf`.
    """
    items = field.base
    entries = round(items.count * CACHED)
    missed = Missed(Drawn(_reads(field, items), Keys(items.ids, Zipf(ZIPF))), entries)
    passed = 1 - missed.hit_rate(COUNTED_DRAWS)
    foretold = che(items.count, ZIPF, entries)
    hot_share = excess(fullest(list(islice(missed.names(), COUNTED_DRAWS)), items.parts), items.parts)

    def foretell(rate: float) -> float:
        hit_rate = foretold.hit_rate
        return predict_ru(
            field.charges, rate, items.size, hit_rate=hit_rate, hot_share=hot_share, partitions=items.parts
        )

    name = f"a cache of {entries} lists before zipf {ZIPF:g}"
    inputs = f"hit rate {foretold.hit_rate:.1%} by Che's approximation, counted {1 - passed:.1%}"
    return Scenario(name, inputs, field.ru, lambda rate: Offered(missed, rate * passed), foretell)


def excess(share: float, parts: int) -> float:
    """Turn the share of the fullest partition into that of one key which would make it as full, all else even."""
    return (share * parts - 1) / (parts - 1) if parts > 1 else 0.0


def published_in_place(field: Field) -> Scenario:
    """Replace items of the very container that is read, as the reference implementation publishes."""
    return _published(field, field.container, "a publish into the same container", in_place=True)


def published_beside(field: Field) -> Scenario:
    """Write into a container of its own, as hotplate publishes."""
    beside = field.ground.make(Throughput(BESIDE_RU))
    field.ground.fill(beside, Items(1, field.base.count, 1))
    return _published(field, beside, "a publish into a container of its own", in_place=False)


def autoscaled(field: Field) -> Scenario:
    """Read from an autoscale container, whose most is what counts."""
    most = autoscale_of(field.ru)
    items = Items(1, field.base.count, most.partitions_at_birth)
    container = field.ground.make(most)
    field.ground.fill(container, items)
    there = Field(field.ground, field.maker, field.charges, container, items, most.ru)
    return steady(there, items, f"autoscale, {most.ru // 10:,} … {most.ru:,} RU/s", ru=most.ru)


def autoscale_of(ru: int) -> Throughput:
    """Return the autoscale range whose most is nearest to *ru* from below, or the least there is."""
    return Throughput(max(AUTOSCALE_STEP, ru // AUTOSCALE_STEP * AUTOSCALE_STEP), autoscale=True)


def all_of(field: Field) -> Iterator[Callable[[], Scenario]]:
    """Yield each scenario as something that is still to be set up."""
    yield lambda: sized(field, 4, 200)
    yield lambda: sized(field, 16, 100)
    yield lambda: sized(field, 64, 60)
    yield lambda: strong(field)
    yield lambda: one_hot_key(field)
    yield lambda: zipf(field)
    yield lambda: cached(field)
    yield lambda: published_in_place(field)
    yield lambda: published_beside(field)
    yield lambda: autoscaled(field)


def _skewed(field: Field, keys: Keys, name: str, hot_share: float, inputs: str) -> Scenario:
    items = field.base

    def foretell(rate: float) -> float:
        return predict_ru(field.charges, rate, items.size, hot_share=hot_share, partitions=items.parts)

    drawn = Drawn(_reads(field, items), keys)
    return Scenario(
        name, f"{inputs}, {items.parts} partition{'s' * (items.parts > 1)}", field.ru, _whole(drawn), foretell
    )


def _published(field: Field, container: str, name: str, *, in_place: bool) -> Scenario:
    items = field.base
    write_ru = write_charge(field.charges, items.size, replaced=True)
    writes_s = PUBLISHED * (field.ru if in_place else BESIDE_RU) / write_ru
    reads = _drawn(field, items, EVENTUAL)
    written = items if in_place else Items(1, items.count, 1)
    writes = Drawn(field.maker.upserts(container, written), Keys(written.ids, InTurn()))

    def offer(rate: float) -> Offered:
        return Offered(Mixed(reads, writes, writes_s / (rate + writes_s)), rate + writes_s)

    def foretell(rate: float) -> float:
        return predict_ru(field.charges, rate, items.size, writes_s=writes_s if in_place else 0.0, replaced=True)

    where = "here" if in_place else "elsewhere"
    return Scenario(name, f"{writes_s:g} lists/s replaced {where}, {write_ru:g} RU each", field.ru, offer, foretell)


def _drawn(field: Field, items: Items, consistency: str) -> Drawn:
    return Drawn(_reads(field, items, consistency), Keys(items.ids, InTurn()))


def _reads(field: Field, items: Items, consistency: str = EVENTUAL) -> dict[str, bytes]:
    return field.maker.reads(field.container, items, consistency)


def _whole(requests: Requests) -> Callable[[float], Offered]:
    return lambda rate: Offered(requests, rate)
