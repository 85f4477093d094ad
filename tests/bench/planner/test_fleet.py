"""Past one machine: skew from a stream of keys or a law, zones and a cluster."""

import random
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest

from hotplate.bench.loadgen.keys import Keys, Zipf
from hotplate.bench.planner.demand import cache_hits, fullest_zipf_share
from hotplate.bench.planner.inputs import PlanMisused
from hotplate.bench.planner.key_stream import count_keys, read_keys
from tests.support.command import hotplate
from tests.support.planning import a_plan

BIG = {
    "users": 100_000_000, "peak_rps": 1_000_000, "profile": "evening", "redis_node_gb": 26, "zones": 3,
    "request_cpu_us": 14, "encoding": "zstd", "list_bytes": 160, "hot_share": None,
}  # fmt: skip


@pytest.mark.parametrize(("partitions", "entries"), [(2, 0), (4, 20)])
def test_by_zipf_the_fullest_partition_is_as_full_as_where_real_ids_lie(partitions: int, entries: int) -> None:
    count, exponent = 200, 0.9
    chances = [rank**-exponent for rank in range(1, count + 1)]
    found = list[float]()
    for shop in range(40):
        drawn = random.Random(shop).choices(range(count), chances, k=5_000)
        stream = count_keys("drawn", [f"{shop}-{number}" for number in drawn], entries)
        found.append(stream.fullest_share(partitions))
    # 40 placements are a mean that is itself some 2 % off.
    assert fullest_zipf_share(count, exponent, partitions, entries) == pytest.approx(fmean(found), rel=0.05)


def test_a_stream_of_keys_has_the_hits_and_the_skew_that_the_law_says() -> None:
    keys = Keys([str(number) for number in range(2_000)], Zipf(0.99))
    stream = count_keys("drawn", islice(keys, 60_000), 200)
    law = cache_hits(2_000, 0.99, 200)
    assert stream.hit_rate == pytest.approx(law.hit_rate, abs=0.01)
    assert stream.fullest_share(1) == 1
    assert count_keys("drawn", islice(keys, 60_000), 0).hit_rate == 0


def test_a_plan_takes_hits_and_skew_from_the_users_who_were_requested(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("\n".join(["hot"] * 30 + [f"user-{number}" for number in range(70)]))
    done = hotplate("plan", "--users", "1000", "--peak-rps", "7000", "--keys-file", str(path), "--set",
                    "publish_ru=50000", "--why", "skew")  # fmt: skip
    assert done.returncode == 0, done.stderr
    stream = read_keys(path, 0)
    assert (stream.hottest, stream.requests) == (0.3, 100)
    assert f"skew: {stream.fullest_share(9) * 9:.3g}" in done.stdout
    path.write_text("\n")
    with pytest.raises(PlanMisused, match="names no user"):
        read_keys(path, 0)


def test_a_cluster_has_primaries_by_memory_or_by_what_a_core_answers() -> None:
    plan = a_plan(**BIG)
    row = (160 + 5 + 10 + 28 + 80) * 1.08
    assert plan.number("redis_gb") == pytest.approx(1e8 * row * 3 / 1e9, rel=0.001)
    assert "--redis-node-gb" in str(a_plan(users=1_000_000_000).figures["redis_cost"].value)
    assert plan.number("cluster_by_memory") == 5  # 92 GB of 20.8 each
    assert plan.number("cluster_by_core") == 3  # 1.7 cores, 60 % used
    assert plan.number("cluster_nodes") == 10
    assert plan.number("cluster_lost_share") == 0.2
    assert a_plan(redis_node_gb=26).number("cluster_primaries") == 3
    assert str(a_plan(redis_node_gb=26).figures["cluster_by_memory"]) == "1 primary"
    assert "cluster_primaries" not in a_plan().figures


def test_any_zone_may_be_lost() -> None:
    plan = a_plan(**BIG)
    assert plan.number("pods_zone") * 2 >= plan.number("pods_region")
    assert plan.number("pods") == plan.number("pods_zone") * 3
    assert a_plan(zones=2).number("pods") == 4  # two in each, as two are wanted
