"""Past one machine: the skew of users by a law, and zones."""

import random
from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import islice
from statistics import fmean

import pytest

from hotplate.bench.cosmos_emulator.partitions import V2_SPAN, effective_key
from hotplate.bench.loadgen.keys import RequestKeys, Zipf
from hotplate.bench.planner.demand import cache_hits, fullest_zipf_share
from hotplate.stores.cosmos.items import name_of
from hotplate.stores.keys import USER
from tests.support.planning import a_plan

BIG = {
    "users": 100_000_000, "peak_rps": 1_000_000, "profile": "evening", "zones": 3,
    "encoding": "zstd", "list_bytes": 160, "hot_share": None,
}  # fmt: skip


def missed(users: Iterable[str], entries: int) -> Counter[str]:
    """Count what a cache of so many lists lets through, from which the least recently used go first."""
    held, found = OrderedDict[str, None](), Counter[str]()
    for user in users:
        if user not in held:
            found[user] += 1
        held[user] = None
        held.move_to_end(user)
        if len(held) > entries:
            held.popitem(last=False)
    return found


def fullest_share(times: Counter[str], partitions: int) -> float:
    """Return the share of the fullest partition, by the service's own hash."""
    loads = Counter[int]()
    for user, count in times.items():
        loads[int(effective_key(name_of(USER + user)), 16) * partitions // V2_SPAN] += count
    return max(loads.values()) / times.total()


@pytest.mark.parametrize(("partitions", "entries"), [(2, 0), (4, 20)])
def test_by_zipf_the_fullest_partition_is_as_full_as_where_real_ids_lie(partitions: int, entries: int) -> None:
    count, exponent = 200, 0.9
    chances = [rank**-exponent for rank in range(1, count + 1)]
    found = list[float]()
    for shop in range(40):
        drawn = random.Random(shop).choices(range(count), chances, k=5_000)
        found.append(fullest_share(missed([f"{shop}-{number}" for number in drawn], entries), partitions))
    # 40 placements are a mean that is itself some 2 % off.
    assert fullest_zipf_share(count, exponent, partitions, entries) == pytest.approx(fmean(found), rel=0.05)


def test_a_cache_has_the_hits_that_the_law_says() -> None:
    keys = RequestKeys([str(number) for number in range(2_000)], Zipf(0.99))
    hit_rate = 1 - missed(islice(keys, 60_000), 200).total() / 60_000
    assert hit_rate == pytest.approx(cache_hits(2_000, 0.99, 200).hit_rate, abs=0.01)


def test_any_zone_may_be_lost() -> None:
    plan = a_plan(**BIG)
    assert plan.number("pods_zone") * 2 >= plan.number("pods_region")
    assert plan.number("pods") == plan.number("pods_zone") * 3
    assert a_plan(zones=2).number("pods") == 4  # two in each, as two are wanted
