"""Figures calculated by hand from documented rules and prices, beyond those of the scenarios."""

import pytest

from hotplate.bench.planner.plan import REDIS_ALLOCATED, REDIS_ROW_BYTES, refused_share
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
