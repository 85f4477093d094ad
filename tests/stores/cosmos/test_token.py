"""Entra ID tokens: cached, renewed in time, refused and missing, with a test issuer."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from azure.core.credentials import AccessToken

from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.requests import TOKEN_PAUSE_S
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Address
from hotplate.stores.store import TOKEN, ChargeCounter
from tests.support.azure import AzureAccount, Identity
from tests.support.clock import FakeClock
from tests.support.cosmos_account import NAME, PATIENCE_S, Account, filled, kind_of


@pytest.fixture
def account(server: AzureAccount) -> Account:
    return Account(server, server.certificate)


async def keyless(account: Account) -> Address:
    """Return a database with a container `c` that holds one item, to be reached by token."""
    return replace(await filled(account), key=None)


Entra = tuple[SignedClient, Identity, FakeClock]


@pytest.fixture
async def entra(
    account: Account, server: AzureAccount, observer: ChargeCounter, clock: FakeClock
) -> AsyncIterator[Entra]:
    """A client by token, on a clock that the test holds, beginning now."""
    address = await keyless(account)
    credential = Identity(server, clock=clock)
    clock.now = time.time()
    client = SignedClient(address, observer, credential=credential, clock=clock)
    yield client, credential, clock
    await client.close()
    assert credential.closed


async def test_token_is_accepted_cached_and_scoped_to_the_account(entra: Entra) -> None:
    client, credential, _ = entra
    for _ in range(5):
        assert await client.read("c", NAME, PATIENCE_S) is not None
    await client.read_fresh("c", NAME)
    assert credential.scopes == ["https://127.0.0.1/.default"]


async def test_token_is_renewed_in_background_and_kept_until_expiry_on_failure(
    entra: Entra, observer: ChargeCounter, caplog: pytest.LogCaptureFixture
) -> None:
    client, credential, clock = entra
    await client.read("c", NAME, PATIENCE_S)
    credential.error = "the identity endpoint is away"
    clock.now += 3300
    for _ in range(20):
        assert await client.read("c", NAME, PATIENCE_S) is not None
    assert len(credential.scopes) == 2
    clock.now += TOKEN_PAUSE_S + 1
    await client.read("c", NAME, PATIENCE_S)
    assert len(credential.scopes) == 3
    told = [record.message for record in caplog.records if "no token" in record.message]
    assert [message.partition("no token")[2] for message in told] == [" from Entra ID: the identity endpoint is away"]
    clock.now += 300
    with pytest.raises(CosmosUnavailable, match=r"Entra ID gives no token.*identity endpoint is away") as error:
        await client.read("c", NAME, PATIENCE_S)
    assert error.value.kind == "unauthorized"
    credential.error = ""
    clock.now += TOKEN_PAUSE_S + 1
    assert await client.read("c", NAME, PATIENCE_S) is not None
    assert Counter(observer.failures) == {TOKEN: 3, "unauthorized": 1}


async def test_token_timeout_of_one_caller_does_not_end_the_fetch(
    account: Account, server: AzureAccount, observer: ChargeCounter
) -> None:
    class Slow(Identity):
        async def get_token(self, *scopes: str, **options: object) -> AccessToken:
            await released.wait()
            return await super().get_token(*scopes, **options)

    released = asyncio.Event()
    address = await keyless(account)
    client = SignedClient(address, observer, credential=Slow(server))
    assert await kind_of(client.read("c", NAME, 0.05)) == "timeout"
    reading = asyncio.create_task(client.read("c", NAME, PATIENCE_S))
    released.set()
    assert await reading is not None
    await client.close()
