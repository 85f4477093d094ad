"""Items by our client and containers by azure-cosmos, over plain connections and TLS, against the emulator."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from hotplate.stores.cosmos.control import AccountContainers
from hotplate.stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable
from hotplate.stores.cosmos.items import VersionedItem
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import Address, Offer, Throughput
from tests.support.cosmos_account import Account, Counted, with_container

ITEM = {"id": "user.YQ", "v": 'ü and " and \\'}
Open = Callable[[Address], RestClient]
# What the emulator calls an operation, and how a client comes to request it.
ATTEMPTS: dict[str, Callable[[RestClient], Awaitable[object]]] = {
    "read item": lambda client: client.read("c", ITEM["id"], 5.0),
    "upsert item": lambda client: client.upsert("c", ITEM),
    "replace item": lambda client: client.replace("c", ITEM, '"any"'),
}


@pytest.fixture
async def opened(observer: Counted) -> AsyncIterator[Open]:
    """Open clients that are closed at the end, twice, as closing twice does nothing."""
    clients = list[RestClient]()

    def open_client(address: Address) -> RestClient:
        clients.append(RestClient(address, observer))
        return clients[-1]

    yield open_client
    for client in clients * 2:
        await client.close()


@pytest.fixture
async def made(account: Account, opened: Open) -> AsyncIterator[tuple[RestClient, AccountContainers]]:
    """A client with a database and a container `c` of its own, and what made them."""
    account.misbehave()
    address = account.address(f"d{secrets.token_hex(4)}")
    client = opened(address)
    yield client, await with_container(client, address)
    account.misbehave()


@pytest.fixture
def client(made: tuple[RestClient, AccountContainers]) -> RestClient:
    return made[0]


@pytest.fixture
def containers(made: tuple[RestClient, AccountContainers]) -> AccountContainers:
    return made[1]


async def test_databases_and_containers_are_made_and_dropped_once(account: Account, opened: Open) -> None:
    address = account.address(f"d{secrets.token_hex(4)}")
    containers = AccountContainers(address, opened(address))
    assert [await containers.create_database() for _ in range(2)] == [True, False]
    assert [await containers.create_container("c", Throughput(400)) for _ in range(2)] == [True, False]
    assert await containers.create_container("serverless", None)
    for _ in range(2):
        await containers.delete_container("c")


async def test_the_sdk_does_nothing_in_the_background(account: Account, containers: AccountContainers) -> None:
    before = account.requests("read account")
    for _ in range(10):
        await containers.create_database()
        await asyncio.sleep(0.02)  # which is long enough for a look at the health of the region
    assert account.requests("read account") == before + 10


async def test_an_item_is_created_once_and_replaced_only_as_it_was_seen(client: RestClient) -> None:
    assert await client.create("c", ITEM) == (True, 5.0)
    assert not (await client.create("c", ITEM)).done
    first = await client.read_versioned("c", ITEM["id"])
    assert (await client.upsert("c", {**ITEM, "n": 1})).done
    assert not (await client.replace("c", {**ITEM, "n": 2}, first.etag)).done
    second = await client.read_versioned("c", ITEM["id"])
    assert second.item is not None
    assert second.item["n"] == 1
    assert await client.replace("c", {**ITEM, "n": 2}, second.etag) == (True, 10.0)
    assert (await client.upsert("c", {"id": "other"})).done


async def test_what_is_read_is_what_was_written_and_absence_is_no_error(client: RestClient) -> None:
    await client.upsert("c", ITEM)
    for fresh in (True, False):
        found = await client.read("c", ITEM["id"], 2.0, fresh=fresh)
        assert found is not None
        assert {name: found[name] for name in ITEM} == ITEM
        assert await client.read("c", "none", 2.0, fresh=fresh) is None


async def test_a_versioned_read_has_the_clock_of_the_service_with_or_without_an_item(client: RestClient) -> None:
    await client.upsert("c", ITEM)
    for name in (ITEM["id"], "none"):
        found = await client.read_versioned("c", name)
        assert abs(found.now - time.time()) < 10
    assert found == VersionedItem(None, "", found.now)


async def test_throughput_is_read_and_changed(containers: AccountContainers) -> None:
    assert await containers.offer("c") == Offer(Throughput(4000), 400, pending=False)
    await containers.scale("c", Throughput(500))
    assert await containers.offer("c") == Offer(Throughput(500), 400, pending=False)
    await containers.create_container("auto", Throughput(4000, autoscale=True))
    await containers.scale("auto", Throughput(6000, autoscale=True))
    assert await containers.offer("auto") == Offer(Throughput(6000, autoscale=True), 1000, pending=False)
    with pytest.raises(CosmosUnavailable, match="400 … 1000000") as error:
        await containers.scale("c", Throughput(300))
    assert error.value.kind == "refused"


async def test_a_container_that_is_not_there_is_reported_as_missing(
    client: RestClient, containers: AccountContainers, observer: Counted
) -> None:
    for request in (
        client.read("gone", "x", 2.0),
        client.read("gone", "x", 2.0, fresh=True),
        client.read_versioned("gone", "x"),
        client.create("gone", ITEM),
        client.upsert("gone", ITEM),
        client.replace("gone", ITEM, '"x"'),
        client.offer("gone"),
        containers.scale("gone", Throughput(500)),
    ):
        with pytest.raises(ContainerMissing):
            await request
    assert observer.kinds == []


async def test_a_container_that_was_made_anew_is_read_again_after_one_attempt_at_most(
    client: RestClient, containers: AccountContainers
) -> None:
    await client.upsert("c", ITEM)
    assert await client.read("c", ITEM["id"], 2.0) is not None
    await containers.delete_container("c")
    await containers.create_container("c", Throughput(400))
    for fresh in (False, True):
        try:
            assert await client.read("c", ITEM["id"], 2.0, fresh=fresh) is None
        except CosmosUnavailable as error:
            assert error.kind == "unavailable"  # noqa: PT017 -- either is right, and the next read must be
        assert await client.read("c", ITEM["id"], 2.0, fresh=fresh) is None


async def test_every_answer_is_counted_with_its_charge(account: Account, client: RestClient, observer: Counted) -> None:
    before_ru, ours_ru = account.spent_ru(), observer.ru
    await client.create("c", ITEM)
    await client.create("c", ITEM)
    await client.upsert("c", ITEM)
    await asyncio.gather(*(client.read("c", name, 2.0) for name in (ITEM["id"], "none") * 8))
    await client.read_versioned("c", "none")
    await client.replace("c", ITEM, '"never"')
    assert observer.ru - ours_ru == pytest.approx(account.spent_ru() - before_ru)
    assert observer.kinds == []


async def test_a_429_is_one_attempt_and_its_error_has_the_time_to_retry_after(
    account: Account, client: RestClient, containers: AccountContainers, observer: Counted
) -> None:
    await client.upsert("c", ITEM)
    await client.read("c", ITEM["id"], 2.0)
    for operation, request in (
        ("read item", lambda: client.read("c", ITEM["id"], 5.0)),
        ("read item", lambda: client.read_versioned("c", ITEM["id"])),
        ("upsert item", lambda: client.upsert("c", ITEM)),
        ("create database", containers.create_database),
        ("replace offer", lambda: containers.scale("c", Throughput(500))),
    ):
        account.misbehave({"kind": "throttle", "retry_after_ms": 250, "operation": operation})
        before, observer.kinds[:] = account.requests(operation), []
        with pytest.raises(CosmosThrottled) as error:
            await request()
        assert error.value.retry_after_s == 0.25
        assert account.requests(operation) == before + 1
        assert observer.kinds == ["throttled"]


@pytest.mark.parametrize("operation", sorted(ATTEMPTS))
@pytest.mark.parametrize("kind", ["unavailable", "timeout", "retry-with", "gone", "reset"])
async def test_a_failure_is_one_attempt_where_there_is_one_region(
    account: Account, client: RestClient, observer: Counted, kind: str, operation: str
) -> None:
    await client.upsert("c", ITEM)
    await client.read("c", ITEM["id"], 2.0)
    account.misbehave({"kind": kind, "operation": operation})
    before = account.requests(operation)
    with pytest.raises(CosmosUnavailable) as error:
        await ATTEMPTS[operation](client)
    assert error.value.kind == ("reset" if kind == "reset" else "unavailable")
    assert set(observer.kinds) == {error.value.kind}
    assert account.requests(operation) - before == len(observer.kinds)
    assert len(observer.kinds) == 1 or (kind, operation) == ("reset", "read item")  # its connection was a kept one


async def test_a_slow_answer_is_not_waited_for(account: Account, client: RestClient, observer: Counted) -> None:
    await client.upsert("c", ITEM)
    await client.read("c", ITEM["id"], 2.0)
    account.misbehave({"kind": "slow", "delay_ms": 20_000, "operation": "read item"})
    started = time.monotonic()
    with pytest.raises(CosmosUnavailable) as error:
        await client.read("c", ITEM["id"], 0.1)
    assert time.monotonic() - started < 2
    assert error.value.kind == "timeout"
    assert observer.kinds == ["timeout"]
    account.misbehave()
    assert await client.read("c", ITEM["id"], 2.0) is not None


async def test_the_error_of_a_wrong_key_names_what_to_do_and_not_the_key(
    account: Account, opened: Open, observer: Counted
) -> None:
    wrong = "d3JvbmcgYnV0IGxvbmcgZW5vdWdoIHRvIGJlIGEga2V5"
    client = opened(replace(account.address("d"), key=wrong))
    for request in (client.read("c", "x", 5.0), client.read_versioned("c", "x"), client.account()):
        with pytest.raises(CosmosUnavailable, match="HOTPLATE_COSMOS_KEY") as error:
            await request
        assert error.value.kind == "unauthorized"
        assert wrong not in str(error.value)
    assert set(observer.kinds) == {"unauthorized"}


async def test_who_cannot_be_reached_is_reported_at_once(opened: Open, observer: Counted, account: Account) -> None:
    nowhere = "https://127.0.0.1:9" if account.certificate else "http://127.0.0.1:9"
    client = opened(replace(account.address("d"), endpoint=nowhere))
    started = time.monotonic()
    with pytest.raises(CosmosUnavailable) as error:
        await client.read("c", "x", 5.0)
    assert time.monotonic() - started < 2
    assert error.value.kind == "connect"
    assert set(observer.kinds) == {"connect"}


async def test_an_untrusted_certificate_is_refused_on_loopback_too(account: Account, opened: Open) -> None:
    if account.certificate is None:
        return
    client = opened(replace(account.address("d"), ca=None))
    before = account.requests("read account")
    with pytest.raises(CosmosUnavailable) as error:
        await client.read("c", "x", 5.0)
    assert error.value.kind == "connect"
    assert account.requests("read account") == before


async def test_the_account_lists_its_regions_the_preferred_one_first(two_regions: Account, opened: Open) -> None:
    account_of = [
        await opened(two_regions.address("d", **options)).account() for options in ({}, {"region": "Emulated East"})
    ]
    assert account_of[0] == (False, ("Emulated West", "Emulated East"))
    assert account_of[1] == (False, ("Emulated East", "Emulated West"))


@pytest.mark.parametrize("gone", [0, 1])
async def test_lookups_fail_over_to_the_other_region_and_writes_do_not(
    two_regions: Account, opened: Open, gone: int
) -> None:
    two_regions.misbehave()
    name = f"d{secrets.token_hex(4)}"
    address = two_regions.address(name, region="Emulated East")
    client = opened(address)
    await with_container(client, address, 400)
    await client.upsert("c", ITEM)
    assert await client.read("c", ITEM["id"], 2.0) is not None
    two_regions.misbehave({"kind": "region-gone", "region": gone})
    for _ in range(5):
        assert await client.read("c", ITEM["id"], 2.0) is not None
    if gone:
        assert (await client.upsert("c", {**ITEM, "n": 1})).done
        assert (await client.read_versioned("c", ITEM["id"])).item is not None
    else:
        with pytest.raises(CosmosUnavailable):
            await client.upsert("c", ITEM)
    two_regions.misbehave()
