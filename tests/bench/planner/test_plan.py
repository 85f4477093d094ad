"""Figures calculated by hand from documented rules and prices, beyond those of the scenarios."""

from math import log

import pytest

from hotplate.bench.planner.plan import REDIS_ALLOCATED, REDIS_ROW_BYTES, hottest_share, possible_costs, refused_share
from hotplate.bench.planner.review import report, warnings
from hotplate.stores.cosmos.rows import item_bytes, name_of, to_item
from tests.support.planning import a_plan

RU_MONTH = 0.008 / 100 * 730  # USD for 1 RU/s all month: 0.0584


def test_a_container_that_is_made_for_a_fast_publish_keeps_its_partitions() -> None:
    fast = a_plan(publish_ru=50_000)
    assert any("9 partitions for life, and 1 would do" in each for each in warnings(fast))
    assert a_plan(publish_ru=6_000).number("new_partitions") == 1
    assert a_plan(publish_ru=6_100).number("new_partitions") == 2
    # 7,000 / 0.7 = 10,000 RU/s: a new container of them has 2, though 1 could carry them
    serving = a_plan(peak_rps=7_000)
    assert (serving.number("serve_ru"), serving.number("partitions")) == (10_000, 2)
    assert not any("for life" in each for each in warnings(serving))


def test_serverless_is_ruled_out_above_5000_ru_or_by_a_slow_publish() -> None:
    assert "serverless" in possible_costs(a_plan(peak_rps=3_500).figures)  # / 0.7 = 5,000
    assert "serverless" not in possible_costs(a_plan(peak_rps=3_501).figures)
    slow = a_plan(users=100_000_000, refresh_hours=12)  # 95 GB: two partitions, 600M RU at 10,000 RU/s: 16.7 hours
    assert "16.7 hours" in str(slow.figures["serverless_cost"].value)
    # Each process reads the catalogue every 2 s, twice as dear with strong reads.
    assert a_plan(min_pods=3, pod_cpus=2).number("polls_ru") == 3
    assert a_plan(consistency="strong").number("polls_ru") == 2


def test_a_publish_takes_what_its_window_needs() -> None:
    window = a_plan(users=700_000, items=0, window_hours=2)
    assert window.number("publish_ru_s") == 600  # 700,000 * 6 / 7,200 s are 583
    # live 400, kept 400 and control 400 all month; 730 / 24 publishes of 600 RU/s for 2 hours, and 400 for one more.
    hours = 1_200 * 730 + 730 / 24 * (600 * 2 + 400)
    assert window.number("manual_cost") - window.number("storage_cost") == pytest.approx(hours / 100 * 0.008)
    assert (window.number("together_ru"), window.number("containers")) == (400 + 400 + 600 + 400, 4)
    slow = a_plan(users=10_000_000, publish_ru=10_000)
    assert any("1.7 hours, more than the 1 it may" in each for each in warnings(slow))


def test_a_cache_keeps_reads_from_the_store() -> None:
    known = a_plan(peak_rps=2_800, hit_rate=0.75)
    assert known.number("reads_s") == pytest.approx(700)
    assert known.number("serve_ru") == 1_000
    assert hottest_share(3, 1.0) == pytest.approx(6 / 11)  # 1 / (1 + 1/2 + 1/3)
    assert hottest_share(4, 0.0) == pytest.approx(1 / 4)
    # Far ranks are taken together: the first's share of a million is still 1 / H(1,000,000), H = ln n + 0.5772.
    assert hottest_share(1_000_000, 1.0) == pytest.approx(1 / (log(1e6) + 0.5772157), rel=1e-6)
    assert hottest_share(50_000, 0.9) == pytest.approx(1 / sum(n**-0.9 for n in range(1, 50_001)), rel=1e-6)
    # Where a tenth of the lookups are for users without a list, each costs what a read of 1 KB does.
    assert a_plan(unknown_share=0.1).number("mean_read_ru") == pytest.approx(1.0)


def test_redis_holds_the_live_the_kept_and_the_next_release() -> None:
    # (877 + user: 5 + id 10 + prefix and release 28 + 80) * 1.08 = 1,080 bytes, a million, three times: 3.24 GB. A
    # fifth is reserved: B3 leaves 2.4 GB, B5 4.8.
    held = a_plan(users=1_000_000, list_bytes=877)
    assert held.number("redis_row_bytes") == pytest.approx(1_080)
    assert (held.figures["redis_size"].value, held.number("redis_shards")) == ("B5", 2)
    assert held.number("redis_cost") == pytest.approx(2 * 0.156 * 730)
    assert a_plan(users=1_000_000, list_bytes=877, kept=0).figures["redis_size"].value == "B3"  # 2.16 GB
    many = a_plan(users=100_000_000, list_bytes=877)
    assert many.number("redis_shards") == 96
    assert many.figures["price_redis_node_hour"].source.startswith("ASSUMED, NO PRICE WAS FOUND")


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


def test_the_shortage_follows_from_what_reads_need() -> None:
    # Without headroom, what is provisioned is what reads need.
    made = report(a_plan(peak_rps=6_800, have_ru=400, ru_utilisation=1), "prices.toml")
    assert made.sentence == "short by 6,400 RU/s: 94 of 100 reads get 429"
    headroom = report(a_plan(peak_rps=700, have_ru=800), "prices.toml")
    assert headroom.sentence == "short by 200 RU/s: the busiest hour fits as a mean, its peaks get 429"
    # Two partitions of 500 RU/s each, of which one gets 800 of 1,000 reads/s: 300 are refused.
    assert refused_share(1_000, 1_000, 1.6, 2) == pytest.approx(0.3)
    assert refused_share(400, 0, 1, 1) == 0
    assert refused_share(400, 400, 1, 3) == pytest.approx(0)


def test_ru_alone_tell_what_they_carry() -> None:
    carries = report(a_plan(users=None, peak_rps=None, have_ru=6_000), "prices.toml")
    assert carries.sentence == "6,000 RU/s carry 6,000 reads/s, 4,200 with room for peaks, or 1,000 lists published/s"
    assert carries.exit_code == 0
    assert {row.note: row.value for row in carries.rows}["carried_cost"] == pytest.approx(6_000 * RU_MONTH)
