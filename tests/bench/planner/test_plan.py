"""Twelve plans whose figures were worked out by hand, from the documents' rules and prices."""

from math import ceil, exp, log

import pytest

from hotplate.bench.planner import prices
from hotplate.bench.planner.cosmos import possible_costs
from hotplate.bench.planner.demand import cache_hits, hottest_share, popularity
from hotplate.bench.planner.plan import REDIS_ALLOCATED, REDIS_ROW_BYTES
from hotplate.bench.planner.review import cost_at, find_break_even, find_savings, warnings
from hotplate.stores.cosmos.items import item_bytes, name_of, to_item
from tests.support.planning import a_plan

RU_MONTH = 0.008 / 100 * 730  # USD for 1 RU/s all month: 0.0584


def test_a_container_that_is_made_for_a_fast_publish_keeps_its_partitions() -> None:
    fast = a_plan(publish_ru=50_000)
    assert fast.number("new_partitions") == 9  # 50,000 / 6,000 = 8.3
    assert fast.number("autoscale_new_partitions") == 5  # 50,000 / 10,000
    assert fast.number("least_ru") == 500  # a hundredth of 50,000
    assert any("9 partitions for life, and 1 would do" in each for each in warnings(fast))
    assert a_plan(publish_ru=6_000).number("new_partitions") == 1
    assert a_plan(publish_ru=6_100).number("new_partitions") == 2
    serving = a_plan(
        peak_rps=7_000
    )  # 7,000 / 0.7 = 10,000 RU/s: a new container of them has 2, though 1 could carry them
    assert (serving.number("serve_ru"), serving.number("partitions")) == (10_000, 2)
    assert not any("for life" in each for each in warnings(serving))


def test_autoscale_pays_if_two_thirds_of_what_is_provisioned_are_never_reached() -> None:
    # 7,000 requests/s of 1 RU, 70 % used: 10,000 RU/s are provisioned, and 7,000 reached, at 1.5 times the price.
    busy = a_plan(peak_rps=7_000)
    assert (busy.number("serve_ru"), busy.number("autoscale_top_ru")) == (10_000, 10_000)
    assert busy.number("autoscale_mean_ru") == 7_000
    # All but the live release costs less by autoscale, so look at that alone.
    assert busy.number("autoscale_mean_ru") * 1.5 > 10_000
    assert busy.number("autoscale_cost") < busy.number("autoscale_most_cost")
    calm = a_plan(peak_rps=7_000, profile=[3] * 12 + [1] * 12)
    assert calm.number("autoscale_mean_ru") * 1.5 < 10_000
    assert calm.number("autoscale_mean_ru") == pytest.approx(7_000 * 2 / 3)
    assert calm.number("autoscale_cost") < calm.number("manual_cost")
    assert calm.number("autoscale_most_cost") == pytest.approx(busy.number("autoscale_most_cost"), rel=0.01)
    idle = a_plan(peak_rps=7_000, profile=[1] + [0] * 23)
    assert idle.number("autoscale_mean_ru") == pytest.approx((7_000 + 23 * 1_000) / 24)  # never below a tenth


def test_a_container_never_has_less_than_its_minimum() -> None:
    assert a_plan(peak_rps=1).number("serve_ru") == 400
    stored = a_plan(users=1_000_000_000, peak_rps=1, publish_ru=10_000, list_bytes=700)
    gb = 1e9 * (21 + 14 + 700 + 6 + 205) / 1e9  # the item: id, list and its quotes, system properties
    assert stored.number("release_gb") == pytest.approx(gb) == pytest.approx(946)
    assert stored.number("serve_ru") == 1_000  # 946 GB at 1 RU/s each, in steps of 100
    assert stored.number("partitions") == 19  # 946 / 50
    assert a_plan(peak_rps=1, publish_ru=120_000).number("serve_ru") == 1_200  # a hundredth of the highest


def test_serverless_ends_at_5000_ru_and_one_region_and_pays_below_a_tenth() -> None:
    fits = a_plan(peak_rps=3_500)  # / 0.7 = 5,000
    assert "serverless" in possible_costs(fits.figures)
    above = a_plan(peak_rps=3_501)
    assert "above 5,000" in str(above.figures["serverless_cost"].value)
    assert "serverless" not in possible_costs(above.figures)
    assert "2 regions" in str(a_plan(regions=2).figures["serverless_cost"].value)
    slow = a_plan(users=100_000_000, refresh_hours=12)  # 95 GB: two partitions, 600M RU at 10,000 RU/s: 16.7 hours
    assert "16.7 hours" in str(slow.figures["serverless_cost"].value)
    # 100 RU/s for an hour cost 0.008 USD, for which serverless gives 32,000 RU: 8.9 % of 360,000.
    ours = prices.load()
    assert ours.ru_hours(100) == pytest.approx(ours.serverless_ru(32_000)) == pytest.approx(0.008)
    # Each process reads the catalogue every 2 s, twice as dear with strong reads.
    assert a_plan(min_pods=3, pod_cpus=2).number("polls_ru") == 3
    assert a_plan(consistency="strong").number("polls_ru") == 2


def test_a_hot_user_makes_every_partition_as_large_as_its_own() -> None:
    # 9 partitions for life; the fullest holds the hot tenth and a ninth of the rest: (0.1 + 0.1) of 700 reads/s, so
    # that 9 * 140 / 0.7 = 1,800 RU/s are needed where 1,000 would do for even users.
    hot = a_plan(peak_rps=700, hot_share=0.1, publish_ru=50_000)
    assert hot.number("skew") == pytest.approx(1 + 0.1 * 8)
    assert hot.number("serve_ru") == 1_800
    assert hot.number("partition_ru") == 200
    assert hot.number("hot_key_load") == pytest.approx(70 / 200)
    assert hot.number("hot_partition_load") == pytest.approx(0.7)
    assert a_plan(peak_rps=700, publish_ru=50_000, hot_share=0).number("serve_ru") == 1_000
    # 11,000 RU/s for one key are more than the 10,000 of a partition, and no throughput helps.
    assert any("no RU/s help" in each for each in warnings(a_plan(peak_rps=110_000, hot_share=0.1)))


def test_a_publish_takes_what_its_window_needs() -> None:
    window = a_plan(users=700_000, items=0, window_hours=2)
    assert (window.number("list_write_ru"), window.number("read_back_ru")) == (5, 1)  # up to 1 KB, no indexes
    assert window.number("publish_ru_s") == 600  # 700,000 * 6 / 7,200 s are 583
    assert window.number("publish_hours") == pytest.approx(700_000 * 6 / 600 / 3_600, rel=0.01)
    given = a_plan(users=10_000_000, publish_ru=10_000)
    assert given.number("publish_hours") == pytest.approx(10e6 * 6 / 10_000 / 3_600, rel=0.01)  # 1.67 hours
    assert any("1.7 hours, more than the 1 it may" in each for each in warnings(given))
    # live 400, kept 400 and control 400 all month; 730 / 24 publishes of 600 RU/s for 2 hours, and 400 for one more.
    hours = 1_200 * 730 + 730 / 24 * (600 * 2 + 400)
    assert window.number("manual_cost") - window.number("storage_cost") == pytest.approx(hours / 100 * 0.008)
    assert window.number("together_ru") == 400 + 400 + 600 + 400
    assert window.number("containers") == 4
    indexed = a_plan(indexing="default", indexed_terms=10)
    assert indexed.number("list_write_ru") == 5 + 10 * 0.2


def test_a_second_region_doubles_what_is_paid() -> None:
    one, two = a_plan(peak_rps=7_000), a_plan(peak_rps=7_000, regions=2)
    assert two.number("serve_ru") == one.number("serve_ru") == 10_000  # each must answer all when the other fails
    for name in ("manual_cost", "redis_cost", "pods_cost", "storage_cost"):
        assert two.number(name) == pytest.approx(2 * one.number(name))
    shared = a_plan(peak_rps=7_000, regions=2, region_share=0.5)
    assert shared.number("serve_ru") == 5_000


@pytest.mark.parametrize("consistency", ["bounded", "strong"])
def test_strong_reads_cost_twice(consistency: str) -> None:
    strong = a_plan(peak_rps=700, consistency=consistency)
    assert strong.number("mean_read_ru") == 2
    assert strong.number("serve_ru") == 2_000  # 700 * 2 / 0.7
    assert strong.number("list_write_ru") == 5
    assert a_plan(peak_rps=700, consistency="session").number("serve_ru") == 1_000
    saved = {each.change: each.cosmos_saves for each in find_savings(strong)}[
        f"eventual consistency, not {consistency}"
    ]
    # The live release all month, and at each publish the next one for the hour of writing and one of two side by side.
    assert saved == pytest.approx(1_000 * (730 + 2 * 730 / 24) / 100 * 0.008, abs=0.01)


def test_a_cache_keeps_reads_from_the_store() -> None:
    known = a_plan(peak_rps=2_800, hit_rate=0.75)
    assert known.number("reads_s") == pytest.approx(700)
    assert known.number("serve_ru") == 1_000
    # Two keys alike, one kept: 2 (1 - e^(-T/2)) = 1, so T = 2 ln 2, and half of the requests hit.
    assert cache_hits(2, 0.0, 1).hit_rate == pytest.approx(0.5)
    # Two keys at 2/3 and 1/3, one kept: with x = e^(-T/3), (1 - x^2) + (1 - x) = 1, x = (sqrt(5) - 1) / 2.
    x = (5**0.5 - 1) / 2
    found = cache_hits(2, 1.0, 1)
    assert found.hit_rate == pytest.approx(2 / 3 * (1 - x * x) + 1 / 3 * (1 - x))
    assert found.hottest_hit_rate == pytest.approx(1 - x * x)
    assert hottest_share(3, 1.0) == pytest.approx(6 / 11)  # 1 / (1 + 1/2 + 1/3)
    # Far ranks are taken together: the first's share of a million is still 1 / H(1,000,000), H = ln n + 0.5772.
    assert hottest_share(1_000_000, 1.0) == pytest.approx(1 / (log(1e6) + 0.5772157), rel=1e-6)
    assert sum(count for count, _ in popularity(1_000_000, 0.9)) == 1_000_000
    # Of 1,000 users alike, 100 kept, in each of the pods: a tenth hits. The reads that are left are as even as before.
    alike = a_plan(users=1_000, peak_rps=700, zipf=0, cache_entries=100, hot_share=None)
    assert alike.number("hits") == pytest.approx(0.1)
    assert alike.number("hot_read") == pytest.approx(0.001)
    # Where a tenth of the lookups are for users without a list, each costs what a read of 1 KB does.
    assert a_plan(unknown_share=0.1).number("mean_read_ru") == pytest.approx(1.0)


def test_redis_holds_the_live_the_kept_and_the_next_release() -> None:
    # (877 + user: 5 + id 10 + prefix and release 28 + 80) * 1.08 = 1,080 bytes, a million, three times: 3.24 GB. A
    # fifth is reserved: B3 leaves 2.4 GB, B5 4.8.
    held = a_plan(users=1_000_000, list_bytes=877)
    assert held.number("redis_row_bytes") == pytest.approx(1_080)
    assert held.number("redis_gb") == pytest.approx(3.24)
    assert held.figures["redis_size"].value == "B5"
    assert held.number("redis_shards") == 2
    assert held.number("redis_cost") == pytest.approx(2 * 0.156 * 730)
    assert a_plan(users=1_000_000, list_bytes=877, kept=0).figures["redis_size"].value == "B3"  # 2.16 GB
    many = a_plan(users=100_000_000, list_bytes=877)  # 324 GB: B350 leaves 288, B500 384
    assert many.figures["redis_size"].value == "B500"
    assert many.number("redis_shards") == 96
    assert many.figures["usd_redis_node_hour"].source.startswith("ASSUMED, NO PRICE WAS FOUND")
    fast = a_plan(peak_rps=200_000)  # a B20 answers 495,000 GETs/s, and 60 % of them may be used; a B10 224,000
    assert fast.figures["redis_size"].value == "B20"


def test_pods_are_the_more_of_two_counts() -> None:
    waiting = a_plan(peak_rps=1_000, request_ms=96, pod_concurrency=16)
    assert waiting.number("pods_by_little") == 10  # 1,000 * 0.096 / 0.6 / 16
    assert waiting.number("pods_by_capacity") == 1  # 1,000 / 16,667 / 0.6
    assert waiting.number("pods") == 10
    measured = a_plan(peak_rps=1_000, request_ms=96, pod_concurrency=16, pod_rps=100)
    assert measured.number("pods_by_capacity") == 17  # 1,000 / 100 / 0.6 = 16.7
    assert measured.number("pods") == 17
    assert a_plan(peak_rps=1).number("pods") == 2
    assert a_plan(peak_rps=1, regions=3).number("pods_cost") == pytest.approx(6 * 0.048 * 730)


def test_growth_is_compound() -> None:
    then = a_plan(users=1_000, items=500, peak_rps=700, growth_percent=10, months=12)
    assert then.number("rows") == pytest.approx(1_500 * 3.138428376721)  # 1.1^12
    assert then.number("reads_ru") == pytest.approx(1_000 * 3.138428376721)
    assert then.number("serve_ru") == 3_200


def test_the_reference_has_27_times_what_it_needs() -> None:
    # 180 requests/s on 11,000 RU/s, default indexing, replaced in place, 10 items a list, MovieLens 1M's 6,040 users.
    reference = a_plan(
        users=6_040, peak_rps=180, publishing="in-place", indexing="default", indexed_terms=11, list_length=10,
        list_bytes=338, have_ru=11_000,
    )  # fmt: skip
    assert reference.number("today_use") == pytest.approx(180 / 11_000)  # 1.6 %
    assert reference.number("list_write_ru") == pytest.approx(2 * (5 + 11 * 0.2))  # out and in again, terms and all
    assert reference.number("publish_ru_s") == 100  # 6,040 * 14.4 RU in an hour are 24 RU/s
    assert reference.number("reads_ru") == pytest.approx(180 / 0.7)
    assert reference.number("together_ru") == 400  # 257 + 100, in steps of 100
    assert reference.number("over_ru") == 10_600
    assert reference.number("today_cost") == pytest.approx(11_000 * RU_MONTH) == pytest.approx(642.4)
    assert reference.number("over_cost") == pytest.approx(10_600 * RU_MONTH) == pytest.approx(619.04)
    assert reference.number("partitions") == 2  # 11,000 / 6,000, and they stay
    assert reference.number("least_ru") == 400
    plain = {each.change for each in find_savings(reference)}
    assert "no indexing" not in plain  # at this size it saves nothing that is paid for, so it is left out
    large = a_plan(users=10_000_000, publishing="in-place", indexing="default", indexed_terms=11)
    saved = {each.change: each.cosmos_saves for each in find_savings(large)}["no indexing"]
    # 10M lists an hour: 14.4 RU each are 40,000 RU/s, 10 RU 27,777.8; beside them 100 RU/s of reads.
    assert saved == pytest.approx((up_100(40_100) - up_100(27_800 + 100)) * RU_MONTH, abs=0.01)


def up_100(value: float) -> int:
    return ceil(round(value / 100, 9)) * 100


def test_from_some_rate_on_redis_is_cheaper() -> None:
    # Flat load: reads of 1 RU at 70 %, in steps of 100, beside kept and control; publishes of 5,000 RU take 400 RU/s or
    # what serving has for one hour, and one hour more. Redis: two nodes of B0.
    def manual(rate: float) -> float:
        serve = max(400, up_100(rate / 0.7))
        return (serve + 800) * RU_MONTH + 730 / 24 * 2 * serve / 100 * 0.008 + 1_000 * 946 * 3 / 1e9 * 0.25

    plan = a_plan()
    assert plan.number("redis_cost") == pytest.approx(2 * 0.016 * 730) == pytest.approx(23.36)
    point = cost_at(plan, 700)
    assert point.redis is not None
    assert point.redis.value == pytest.approx(23.36)
    assert a_plan(peak_rps=700).number("manual_cost") == pytest.approx(manual(700))
    found = find_break_even(plan)
    assert found.rps is not None
    assert not cost_at(plan, found.rps / 1.01).redis_wins
    assert cost_at(plan, found.rps).redis_wins
    assert "Redis is cheaper" in found.sentence


@pytest.mark.parametrize(("encoding", "titles"), [("json", 0), ("json", 12), ("zstd", 0)])
def test_an_item_is_as_large_as_the_store_makes_it(encoding: str, titles: int) -> None:
    line = b'{"id":"12345678","score":0.1234' + (b',"title":"' + b"t" * titles + b'"' if titles else b"") + b"}"
    value = b",\n".join([line] * 20) if encoding == "json" else bytes(range(128, 256)) + b"\xff" * 42
    plan = a_plan(
        encoding=encoding, title_chars=titles, list_length=20, list_bytes=len(value), user_id_chars=10, item_id_chars=8
    )
    assert plan.number("item_bytes") == item_bytes(to_item(name_of("user:0123456789"), value))
    if encoding == "json":
        assert plan.number("json_bytes") == len(value)


def test_what_redis_keeps_beside_a_row_is_the_stores_own_figure() -> None:
    redis = pytest.importorskip("hotplate.stores.redis.examination")
    assert (REDIS_ROW_BYTES, REDIS_ALLOCATED) == (redis.ROW_BYTES, redis.ALLOCATED)


def test_a_cache_of_users_who_are_all_alike_keeps_its_share() -> None:
    # n (1 - e^(-T/n)) = c, and the hit rate is 1 - e^(-T/n) = c / n.
    assert cache_hits(1_000, 0.0, 250).hit_rate == pytest.approx(0.25)
    assert cache_hits(1_000, 0.0, 250).hottest_hit_rate == pytest.approx(1 - exp(log(1 - 0.25)))
    assert cache_hits(1_000_000, 0.0, 1_000_000).hit_rate == 1
