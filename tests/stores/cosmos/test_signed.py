"""Items by our client and containers by azure-cosmos, over TLS, against the emulator."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import ChargeCounter
from tests.support.cosmos_account import PATIENCE_S, Account, container_in

ITEM = {"id": "user.YQ", "v": 'ü and " and \\'}
Open = Callable[[Address], SignedClient]
# What the emulator calls an operation, and how a client comes to request it.
ATTEMPTS: dict[str, Callable[[SignedClient], Awaitable[object]]] = {
    "read item": lambda client: client.read("c", ITEM["id"], PATIENCE_S),
    "create item": lambda client: client.create("c", ITEM),
    "delete item": lambda client: client.delete("c", ITEM["id"]),
    "replace item": lambda client: client.replace("c", ITEM, '"any"'),
}


@pytest.fixture
async def opened(observer: ChargeCounter) -> AsyncIterator[Open]:
    """Open clients that are closed at the end, twice, as closing twice does nothing."""
    clients = list[SignedClient]()

    def open_client(address: Address) -> SignedClient:
        clients.append(SignedClient(address, observer))
        return clients[-1]

    yield open_client
    for client in clients * 2:
        await client.close()


@pytest.fixture
async def client_and_containers(account: Account, opened: Open) -> AsyncIterator[tuple[SignedClient, CosmosAccount]]:
    """A client with a database and a container `c`, and the control plane that created them."""
    account.inject_faults()
    address = account.address(f"d{secrets.token_hex(4)}")
    client = opened(address)
    async with container_in(address) as containers:
        yield client, containers
    account.inject_faults()


@pytest.fixture
def client(client_and_containers: tuple[SignedClient, CosmosAccount]) -> SignedClient:
    return client_and_containers[0]


@pytest.fixture
def containers(client_and_containers: tuple[SignedClient, CosmosAccount]) -> CosmosAccount:
    return client_and_containers[1]


async def test_every_answer_is_counted_with_its_charge(
    account: Account, client: SignedClient, observer: ChargeCounter
) -> None:
    before_ru = account.spent_ru()
    ours_ru = observer.ru
    await client.create("c", ITEM)
    await client.create("c", ITEM)
    await client.delete("c", "none")
    await asyncio.gather(*(client.read("c", name, PATIENCE_S) for name in (ITEM["id"], "none") * 8))
    await client.read_fresh("c", "none")
    await client.replace("c", ITEM, '"never"')
    assert observer.ru - ours_ru == pytest.approx(account.spent_ru() - before_ru)
    assert observer.failures == []


@pytest.mark.parametrize("operation", sorted(ATTEMPTS))
@pytest.mark.parametrize("kind", ["throttle", "unavailable", "timeout", "retry-with", "gone", "reset"])
async def test_write_is_tried_once_and_read_twice_without_logging(
    account: Account,
    client: SignedClient,
    observer: ChargeCounter,
    caplog: pytest.LogCaptureFixture,
    *,
    kind: str,
    operation: str,
) -> None:
    await client.create("c", ITEM)
    await client.read("c", ITEM["id"], PATIENCE_S)
    account.inject_faults({"kind": kind, "operation": operation, "retry_after_ms": 250})
    before = account.requests(operation)
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreUnavailable) as error:
        await ATTEMPTS[operation](client)
    assert set(observer.failures) == {{"throttle": "throttled", "reset": "reset"}.get(kind, "unavailable")}
    assert account.requests(operation) - before == len(observer.failures)
    assert len(observer.failures) == (2 if operation == "read item" else 1)
    assert kind != "throttle" or getattr(error.value, "retry_after_s", None) == 0.25
    loud = [record for record in caplog.records if record.name != "asyncio" and record.levelno >= logging.INFO]
    assert loud == []
    assert account.emulator.key not in caplog.text


async def test_wrong_key_error_has_advice_and_not_the_key(
    account: Account, opened: Open, observer: ChargeCounter
) -> None:
    wrong = "d3JvbmcgYnV0IGxvbmcgZW5vdWdoIHRvIGJlIGEga2V5"
    client = opened(replace(account.address("d"), key=wrong))
    for request in (client.read("c", "x", PATIENCE_S), client.read_fresh("c", "x"), client.account()):
        with pytest.raises(CosmosUnavailable, match="HOTPLATE_COSMOS_KEY") as error:
            await request
        assert error.value.kind == "unauthorized"
        assert wrong not in str(error.value)
    assert set(observer.failures) == {"unauthorized"}
