"""Containers through Azure Resource Manager: the unmodified azure-mgmt-cosmosdb against the emulation's routes."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from hotplate.bench.process import free_port
from hotplate.stores.cosmos.arm import ArmContainers
from hotplate.stores.cosmos.errors import CosmosThrottled, CosmosUnavailable
from hotplate.stores.cosmos.url import Address, parse
from hotplate.stores.errors import StoreClosed, StoreMisused
from tests.support.azure import PLACE, AzureAccount, Identity
from tests.support.cosmos_account import PATIENCE_S, Account, kind_of
from tests.support.streams import listening, until_sockets_are_closed


def address_of(server: AzureAccount, **options: object) -> Address:
    return parse(server.url(f"db-{secrets.token_hex(4)}", **{**PLACE, **options}), {})


@asynccontextmanager
async def managing(address: Address, identity: Identity) -> AsyncIterator[ArmContainers]:
    assert address.arm is not None
    containers = ArmContainers(address, address.arm, identity)
    try:
        yield containers
    finally:
        await containers.close()


async def test_the_error_of_an_identity_without_the_role_names_the_role(server: AzureAccount) -> None:
    async with managing(address_of(server), Identity(server, "contributor")) as containers:
        with pytest.raises(CosmosUnavailable, match="give it the role Cosmos DB Operator") as refused:
            await containers.create_container("r", None)
    assert refused.value.kind == "forbidden"


@pytest.mark.parametrize(
    "wrong", [{"subscription": "11111111-0000-0000-0000-000000000000"}, {"resource_group": "elsewhere"}]
)
async def test_a_wrong_subscription_or_group_is_named_with_what_to_set(
    server: AzureAccount, wrong: dict[str, str]
) -> None:
    async with managing(address_of(server, **wrong), Identity(server)) as containers:
        with pytest.raises(StoreMisused, match="set subscription= and resource_group= right") as refused:
            await containers.create_database()
    assert next(iter(wrong.values())) in str(refused.value)


async def test_busy_arm_error_is_retryable(server: AzureAccount) -> None:
    account = Account(server, server.certificate)
    async with managing(address_of(server), Identity(server)) as containers:
        account.inject_faults({"kind": "throttle", "operation": "manage database", "retry_after_ms": 7000})
        with pytest.raises(CosmosThrottled, match="takes no more requests for now") as throttled:
            await containers.create_database()
        assert throttled.value.retry_after_s == 7.0
        account.inject_faults({"kind": "unavailable", "operation": "manage operation"})
        assert await kind_of(containers.create_database()) == "unavailable"
        account.inject_faults({"kind": "unavailable", "operation": "finish change"})
        assert await kind_of(containers.create_database()) == "unavailable"
        account.inject_faults()
        await containers.create_database()


async def test_arm_that_is_away_and_a_missing_token_are_different_errors(server: AzureAccount) -> None:
    stranger = Identity(server)
    stranger.error = "nobody is signed in"
    async with managing(address_of(server), stranger) as containers:
        with pytest.raises(CosmosUnavailable, match="nobody is signed in") as unknown:
            await containers.create_database()
    assert unknown.value.kind == "unauthorized"
    away = replace(server, endpoint=f"https://127.0.0.1:{free_port()}/")
    async with managing(address_of(away), Identity(server)) as containers:
        assert await kind_of(containers.create_database()) == "connect"


@pytest.mark.parametrize("turns", [1, 3, 10, 30, 100])
async def test_call_in_flight_ends_when_the_client_is_closed(server: AzureAccount, turns: int) -> None:
    """The account's server accepts connections, and never answers the handshake of TLS."""

    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async with listening(hang) as port, until_sockets_are_closed(PATIENCE_S):
        away = replace(server, endpoint=f"https://127.0.0.1:{port}/")
        async with managing(address_of(away), Identity(server)) as containers:
            listing = asyncio.create_task(containers.list_containers())
            for _ in range(turns):
                await asyncio.sleep(0)
        assert listing.done()
        with pytest.raises(StoreClosed):
            await listing


def test_url_has_subscription_and_resource_group(server: AzureAccount) -> None:
    place = f"resource_group=rg&subscription={PLACE['subscription']}"
    managed = parse(f"cosmos://acct/db?{place}", {}).arm
    assert managed is not None
    assert (managed.subscription, managed.account, managed.emulator) == (PLACE["subscription"], "acct", None)
    assert parse("cosmos://acct/db", {}).arm is None
    elsewhere = parse(f"cosmos://acct.documents.azure.cn/db?{place}", {}).arm
    assert elsewhere is not None
    assert elsewhere.account == "acct"
    assert parse(f"cosmos://acct/db?{place.replace('rg', 'Gruppe-Köln')}", {}).arm is not None
    local = parse(server.url("db", **PLACE), {}).arm
    assert local is not None
    assert local.emulator == server.endpoint.rstrip("/")
    for url, message in (
        ("cosmos://a/db?resource_group=rg", "needs both resource_group="),
        (f"cosmos://a/db?subscription={PLACE['subscription']}", "needs both resource_group="),
        ("cosmos://a/db?resource_group=rg&subscription=mine", "az account show"),
        (f"cosmos://a/db?resource_group=r/g&subscription={PLACE['subscription']}", "write a name of 1 to 90"),
    ):
        with pytest.raises(StoreMisused, match=message):
            parse(url, {})
