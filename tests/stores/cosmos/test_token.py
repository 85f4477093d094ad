"""Who is let in by Entra ID: tokens that are kept, renewed in good time, refused and gone, against a test issuer."""

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import orjson
import pytest
from azure.core.credentials import AccessToken

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.requests import TOKEN_PAUSE_S
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Address
from tests.support.azure_arm import azure_account
from tests.support.clock import FakeClock
from tests.support.cosmos_account import NAME, Account, Counted, filled, kind_of
from tests.support.entra import Identity


class Issued(Identity):
    """A credential that takes its tokens from the emulator, or fails, or gives what no longer counts."""

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.time) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self.requests = 0
        self.life_s = 3600
        self.error = ""
        self.closed = False
        self.scopes = list[str]()

    async def get_token(self, *scopes: str, **_options: object) -> AccessToken:
        self.requests += 1
        self.scopes += scopes
        if self.error:
            raise RuntimeError(self.error)
        answer_json = orjson.loads(await asyncio.to_thread(self.page))
        return AccessToken(answer_json["access_token"], int(self.clock()) + self.life_s)

    def page(self) -> bytes:
        with urllib.request.urlopen(f"{self.endpoint}__emulation/token", timeout=60) as answer:
            answer_json: bytes = answer.read()
        return answer_json

    async def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with azure_account(EmulatorSettings(port=0)) as running:
        yield Account(running)


async def keyless(account: Account) -> Address:
    """Return a database with a container `c` that holds one item, to be reached by token."""
    return replace(await filled(account), key=None)


@pytest.fixture
async def entra(
    account: Account, observer: Counted, clock: FakeClock
) -> AsyncIterator[tuple[SignedClient, Issued, FakeClock]]:
    """A client by token, on a clock that the test holds, beginning now."""
    address = await keyless(account)
    credential = Issued(account.emulator.endpoint, clock)
    clock.now = time.time()
    client = SignedClient(address, observer, credential=credential, clock=clock)
    yield client, credential, clock
    await client.close()
    assert credential.closed


Entra = tuple[SignedClient, Issued, FakeClock]


async def test_a_token_lets_in_is_kept_and_is_for_this_account(entra: Entra) -> None:
    client, credential, _ = entra
    for _ in range(5):
        assert await client.read("c", NAME, 5.0) is not None
    await client.read_fresh("c", NAME)
    assert credential.requests == 1
    assert credential.scopes == ["https://127.0.0.1/.default"]


async def test_token_is_renewed_in_background_and_kept_until_expiry_on_failure(
    entra: Entra, observer: Counted, caplog: pytest.LogCaptureFixture
) -> None:
    client, credential, clock = entra
    await client.read("c", NAME, 5.0)
    credential.error = "the identity endpoint is away"
    clock.now += 3300
    for _ in range(20):
        assert await client.read("c", NAME, 5.0) is not None
    assert credential.requests == 2
    clock.now += TOKEN_PAUSE_S + 1
    await client.read("c", NAME, 5.0)
    assert credential.requests == 3
    told = [record.message for record in caplog.records if "no token" in record.message]
    assert [message.partition("no token")[2] for message in told] == [" from Entra ID: the identity endpoint is away"]
    clock.now += 300
    with pytest.raises(CosmosUnavailable, match=r"Entra ID gives no token.*identity endpoint is away") as error:
        await client.read("c", NAME, 5.0)
    assert error.value.kind == "unauthorized"
    credential.error = ""
    clock.now += TOKEN_PAUSE_S + 1
    assert await client.read("c", NAME, 5.0) is not None
    assert observer.kinds == ["unauthorized"]


async def test_no_token_in_time_is_a_timeout_and_other_callers_go_on_waiting(
    account: Account, observer: Counted
) -> None:
    class Slow(Issued):
        async def get_token(self, *scopes: str, **_options: object) -> AccessToken:
            await released.wait()
            return await super().get_token(*scopes)

    released = asyncio.Event()
    address = await keyless(account)
    client = SignedClient(address, observer, credential=Slow(account.emulator.endpoint))
    assert await kind_of(client.read("c", NAME, 0.05)) == "timeout"
    reading = asyncio.create_task(client.read("c", NAME, 5.0))
    released.set()
    assert await reading is not None
    await client.close()
