"""What both drivers of the Cosmos store do alike, over plain connections and TLS: the contract of `Driver`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from stores.cosmos.driver import Driver, Look, Offer
from stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable
from stores.cosmos.throughput import Throughput
from stores.cosmos.url import Address
from tests.support.cosmos_drivers import DRIVERS, Account, Counted, account

ITEM = {"id": "user.YQ", "v": 'ü and " and \\'}
Open = Callable[[Address], Driver]
ATTEMPTS: dict[str, Callable[[Driver], Awaitable[object]]] = {
    "read item": lambda driver: driver.read("c", ITEM["id"], 5.0),
    "upsert item": lambda driver: driver.upsert("c", ITEM),
    "replace item": lambda driver: driver.replace("c", ITEM, '"any"'),
}
"""What the emulator calls an operation, and how a driver comes to ask for it."""


@pytest.fixture(scope="module", params=["http", "https"])
def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    certificate = tmp_path_factory.mktemp("tls") / "ca.pem" if request.param == "https" else None
    with account(certificate) as running:
        yield running


@pytest.fixture(scope="module")
def regions() -> Iterator[Account]:
    with account(None, "--second-region", "0") as running:
        yield running


@pytest.fixture
def meter() -> Counted:
    return Counted()


@pytest.fixture(params=sorted(DRIVERS))
async def opened(request: pytest.FixtureRequest, meter: Counted) -> AsyncIterator[Open]:
    """Open drivers that are closed at the end, twice, as closing twice does nothing."""
    drivers = list[Driver]()

    def another(address: Address) -> Driver:
        drivers.append(DRIVERS[request.param](address, meter))
        return drivers[-1]

    yield another
    for driver in drivers * 2:
        await driver.close()


@pytest.fixture
async def driver(far: Account, opened: Open) -> AsyncIterator[Driver]:
    """One with a database and a container `c` of its own."""
    far.misbehave()
    made = opened(far.address(f"d{secrets.token_hex(4)}"))
    await made.create_database()
    await made.create_container("c", Throughput(4000))
    yield made
    far.misbehave()


async def test_databases_and_containers_are_made_and_dropped_once(far: Account, opened: Open) -> None:
    driver = opened(far.address(f"d{secrets.token_hex(4)}"))
    assert [await driver.create_database() for _ in range(2)] == [True, False]
    assert [await driver.create_container("c", Throughput(400)) for _ in range(2)] == [True, False]
    assert await driver.create_container("serverless", None)
    for _ in range(2):
        await driver.delete_container("c")


async def test_an_item_is_created_once_and_replaced_only_as_it_was_seen(driver: Driver) -> None:
    assert await driver.create("c", ITEM) == (True, 5.0)
    assert not (await driver.create("c", ITEM)).done
    first = await driver.look("c", ITEM["id"])
    assert (await driver.upsert("c", {**ITEM, "n": 1})).done
    assert not (await driver.replace("c", {**ITEM, "n": 2}, first.etag)).done
    second = await driver.look("c", ITEM["id"])
    assert second.item is not None
    assert second.item["n"] == 1
    assert await driver.replace("c", {**ITEM, "n": 2}, second.etag) == (True, 10.0)
    assert (await driver.upsert("c", {"id": "other"})).done


async def test_what_is_read_is_what_was_written_and_absence_is_no_error(driver: Driver) -> None:
    await driver.upsert("c", ITEM)
    for fresh in (True, False):
        found = await driver.read("c", ITEM["id"], 2.0, fresh=fresh)
        assert found is not None
        assert {name: found[name] for name in ITEM} == ITEM
        assert await driver.read("c", "none", 2.0, fresh=fresh) is None


async def test_a_look_tells_the_clock_of_the_service_with_or_without_an_item(driver: Driver) -> None:
    await driver.upsert("c", ITEM)
    for name in (ITEM["id"], "none"):
        look = await driver.look("c", name)
        assert abs(look.now - time.time()) < 10
    assert look == Look(None, "", look.now)


async def test_throughput_is_told_and_changed(driver: Driver) -> None:
    assert await driver.offer("c") == Offer(Throughput(4000), 400, pending=False)
    await driver.scale("c", Throughput(500))
    assert await driver.offer("c") == Offer(Throughput(500), 400, pending=False)
    await driver.create_container("auto", Throughput(4000, autoscale=True))
    await driver.scale("auto", Throughput(6000, autoscale=True))
    assert await driver.offer("auto") == Offer(Throughput(6000, autoscale=True), 1000, pending=False)
    with pytest.raises(CosmosUnavailable, match="400 … 1000000") as error:
        await driver.scale("c", Throughput(300))
    assert error.value.kind == "refused"


async def test_a_container_that_is_not_there_is_said_to_be_missing(driver: Driver, meter: Counted) -> None:
    for ask in (
        driver.read("gone", "x", 2.0),
        driver.read("gone", "x", 2.0, fresh=True),
        driver.look("gone", "x"),
        driver.create("gone", ITEM),
        driver.upsert("gone", ITEM),
        driver.replace("gone", ITEM, '"x"'),
        driver.offer("gone"),
        driver.scale("gone", Throughput(500)),
    ):
        with pytest.raises(ContainerMissing):
            await ask
    assert meter.kinds == []


async def test_a_container_that_was_made_anew_is_read_again_after_one_attempt_at_most(driver: Driver) -> None:
    await driver.upsert("c", ITEM)
    assert await driver.read("c", ITEM["id"], 2.0) is not None
    await driver.delete_container("c")
    await driver.create_container("c", Throughput(400))
    for fresh in (False, True):
        try:
            assert await driver.read("c", ITEM["id"], 2.0, fresh=fresh) is None
        except CosmosUnavailable as error:
            assert error.kind == "unavailable"  # noqa: PT017 -- either is right, and the next read must be
        assert await driver.read("c", ITEM["id"], 2.0, fresh=fresh) is None


async def test_every_answer_is_counted_with_its_charge(far: Account, driver: Driver, meter: Counted) -> None:
    before_ru, ours_ru = far.spent_ru(), meter.ru
    await driver.create("c", ITEM)
    await driver.create("c", ITEM)
    await driver.upsert("c", ITEM)
    await asyncio.gather(*(driver.read("c", name, 2.0) for name in (ITEM["id"], "none") * 8))
    await driver.look("c", "none")
    await driver.replace("c", ITEM, '"never"')
    assert meter.ru - ours_ru == pytest.approx(far.spent_ru() - before_ru)
    assert meter.kinds == []


async def test_a_429_is_one_attempt_and_says_when_to_come_again(far: Account, driver: Driver, meter: Counted) -> None:
    await driver.upsert("c", ITEM)
    await driver.read("c", ITEM["id"], 2.0)
    for operation, ask in (
        ("read item", lambda: driver.read("c", ITEM["id"], 5.0)),
        ("read item", lambda: driver.look("c", ITEM["id"])),
        ("upsert item", lambda: driver.upsert("c", ITEM)),
        ("create database", driver.create_database),
    ):
        far.misbehave({"kind": "throttle", "retry_after_ms": 250, "operation": operation})
        before, meter.kinds[:] = far.asked(operation), []
        with pytest.raises(CosmosThrottled) as error:
            await ask()
        assert error.value.retry_after_s == 0.25
        assert far.asked(operation) == before + 1
        assert meter.kinds == ["throttled"]


@pytest.mark.parametrize("operation", sorted(ATTEMPTS))
@pytest.mark.parametrize("kind", ["unavailable", "timeout", "retry-with", "gone", "reset"])
async def test_a_failure_is_one_attempt_where_there_is_one_region(
    far: Account, driver: Driver, meter: Counted, kind: str, operation: str
) -> None:
    await driver.upsert("c", ITEM)
    await driver.read("c", ITEM["id"], 2.0)
    far.misbehave({"kind": kind, "operation": operation})
    before = far.asked(operation)
    with pytest.raises(CosmosUnavailable) as error:
        await ATTEMPTS[operation](driver)
    assert error.value.kind == ("reset" if kind == "reset" else "unavailable")
    assert set(meter.kinds) == {error.value.kind}
    assert far.asked(operation) - before == len(meter.kinds)
    assert len(meter.kinds) == 1 or (kind, operation) == ("reset", "read item")  # its connection was a kept one


async def test_a_slow_answer_is_not_waited_for(far: Account, driver: Driver, meter: Counted) -> None:
    await driver.upsert("c", ITEM)
    await driver.read("c", ITEM["id"], 2.0)
    far.misbehave({"kind": "slow", "delay_ms": 20_000, "operation": "read item"})
    started = time.monotonic()
    with pytest.raises(CosmosUnavailable) as error:
        await driver.read("c", ITEM["id"], 0.1)
    assert time.monotonic() - started < 2
    assert error.value.kind == "timeout"
    assert meter.kinds == ["timeout"]
    far.misbehave()
    assert await driver.read("c", ITEM["id"], 2.0) is not None


async def test_a_wrong_key_is_told_with_what_to_do_and_without_the_key(
    far: Account, opened: Open, meter: Counted
) -> None:
    wrong = "d3JvbmcgYnV0IGxvbmcgZW5vdWdoIHRvIGJlIGEga2V5"
    driver = opened(replace(far.address("d"), key=wrong))
    for ask in (driver.read("c", "x", 5.0), driver.look("c", "x"), driver.account()):
        with pytest.raises(CosmosUnavailable, match="HOTPLATE_COSMOS_KEY") as error:
            await ask
        assert error.value.kind == "unauthorized"
        assert wrong not in str(error.value)
    assert set(meter.kinds) == {"unauthorized"}


async def test_who_cannot_be_reached_is_said_so_at_once(opened: Open, meter: Counted, far: Account) -> None:
    nowhere = "https://127.0.0.1:9" if far.certificate else "http://127.0.0.1:9"
    driver = opened(replace(far.address("d"), endpoint=nowhere))
    started = time.monotonic()
    with pytest.raises(CosmosUnavailable) as error:
        await driver.read("c", "x", 5.0)
    assert time.monotonic() - started < 2
    assert error.value.kind == "connect"
    assert set(meter.kinds) == {"connect"}


async def test_a_certificate_that_nobody_vouches_for_is_refused_on_loopback_too(far: Account, opened: Open) -> None:
    if far.certificate is None:
        return
    driver = opened(replace(far.address("d"), ca=None))
    before = far.asked("read account")
    with pytest.raises(CosmosUnavailable) as error:
        await driver.read("c", "x", 5.0)
    assert error.value.kind == "connect"
    assert far.asked("read account") == before


async def test_the_account_tells_its_regions_the_one_that_is_asked_for_first(regions: Account, opened: Open) -> None:
    account_of = [await opened(regions.address("d", **told)).account() for told in ({}, {"region": "Emulated East"})]
    assert account_of[0] == (False, ("Emulated West", "Emulated East"))
    assert account_of[1] == (False, ("Emulated East", "Emulated West"))


@pytest.mark.parametrize("gone", [0, 1])
async def test_lookups_go_on_in_the_other_region_and_writes_stay_where_they_belong(
    regions: Account, opened: Open, gone: int
) -> None:
    regions.misbehave()
    name = f"d{secrets.token_hex(4)}"
    driver = opened(regions.address(name, region="Emulated East"))
    await driver.create_database()
    await driver.create_container("c", Throughput(400))
    await driver.upsert("c", ITEM)
    assert await driver.read("c", ITEM["id"], 2.0) is not None
    regions.misbehave({"kind": "region-gone", "region": gone})
    for _ in range(5):
        assert await driver.read("c", ITEM["id"], 2.0) is not None
    if gone:
        assert (await driver.upsert("c", {**ITEM, "n": 1})).done
        assert (await driver.look("c", ITEM["id"])).item is not None
    else:
        with pytest.raises(CosmosUnavailable):
            await driver.upsert("c", ITEM)
    regions.misbehave()
