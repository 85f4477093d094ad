"""A service that Cosmos DB does not let in: a wrong key, a clock that is off, a token that has ended."""

import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import orjson
import pytest
from azure.core.credentials import AccessToken

import hotplate
from bench.drills.proxy import through
from serve.lists import Lists
from serve.metrics import Metrics
from serve.reader import TieredReader
from serve.tiers import StoreObserver
from stores.cosmos.containers import open_containers
from stores.cosmos.requests import TOKEN_PAUSE_S
from stores.cosmos.rest import RestClient
from stores.cosmos.store import CosmosStore
from stores.cosmos.url import EMULATOR_KEY, KEY
from tests.support.clock import FakeClock
from tests.support.cosmos_account import emulated_account
from tests.support.cosmos_server import emulator
from tests.support.paths import ROOT
from tests.support.readers import WAIT_S, lists, reading, until, until_read
from tests.support.service import publish_to

TIER = "cosmos+http"
WRONG = base64.b64encode(b"not the key of this account" * 2).decode()
AHEAD = """
import asyncio, time
from bench.cosmos_emulator.server import Settings, running

async def main():
    async with running(Settings(port=0), clock=lambda: time.time() + 3600) as made:
        print(made.ports[0], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
SENTENCES = {
    "another key": f"{KEY}, or the file that {KEY}_FILE names, does not hold a key of this account",
    "another time": "this machine's clock is 60 minutes behind the service's; set it right",
}


@contextmanager
def one_that_refuses(why: str, folder: Path) -> Iterator[int]:
    """Run an emulator that lets nobody in with our key, or by our clock; yield its port."""
    if why == "another key":
        (folder / "key").write_text(WRONG)
        with emulator("--key-file", str(folder / "key")) as account:
            yield urlsplit(account.endpoint).port or 0
        return
    with subprocess.Popen([sys.executable, "-c", AHEAD], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@pytest.mark.parametrize("why", SENTENCES)
async def test_where_no_release_was_ever_read_nothing_is_ready_and_the_error_has_the_reason(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with one_that_refuses(why, tmp_path) as port, pytest.raises(hotplate.NotReady) as caught:
        async with hotplate.open(f"{TIER}://127.0.0.1:{port}/db", timeout_s=0.7):  # it is tried several times
            raise AssertionError("it cannot be read")
    assert SENTENCES[why] in str(caught.value)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    for secret in (EMULATOR_KEY, WRONG):
        assert secret not in caplog.text + str(caught.value)


@pytest.mark.parametrize("why", SENTENCES)
async def test_readers_that_are_let_in_no_more_go_on_with_popular_lists_until_they_are_again(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with emulated_account(None) as account, one_that_refuses(why, tmp_path) as elsewhere:
        port = urlsplit(account.emulator.endpoint).port or 0
        await publish_to(account.url("db"), lists("r0"))
        async with through(port) as proxy, reading(f"{TIER}://127.0.0.1:{proxy.port}/db") as reader:
            await until_read(reader, TIER)
            proxy.target = elsewhere
            proxy.reset()

            async def says_why() -> bool:
                await reader.personal("1")
                return SENTENCES[why] in (reader.tiers[0].error or "")

            await until(says_why, "the reason is not given")
            await until_read(reader, TIER, "popular")
            proxy.target = port
            proxy.reset()
            await until_read(reader, TIER)
    for secret in (EMULATOR_KEY, WRONG):
        assert secret not in caplog.text


class ShortLived:
    """A credential whose tokens, the emulator's, last a minute by the clock that the test holds; or it fails."""

    def __init__(self, endpoint: str, clock: FakeClock) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self.requests = 0
        self.error = ""

    async def get_token(self, *scopes: str) -> AccessToken:
        del scopes
        self.requests += 1
        if self.error:
            raise RuntimeError(self.error)
        with urlopen(f"{self.endpoint}__emulation/token", timeout=60) as answer:  # noqa: ASYNC210 -- it answers at once
            token = orjson.loads(answer.read())["access_token"]
        return AccessToken(token, int(self.clock()) + 60)

    async def close(self) -> None:
        """There is nothing to close."""


async def test_a_token_that_ends_costs_personal_lists_until_entra_id_issues_a_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with emulated_account(None, "--entra-issuer") as account:
        await publish_to(account.url("db"), lists("r0"))
        clock, metrics = FakeClock(), Metrics(1, [TIER])
        clock.now = time.time()
        identity, address = ShortLived(account.emulator.endpoint, clock), replace(account.address("db"), key=None)
        client = RestClient(address, StoreObserver(TIER, metrics), credential=identity, clock=clock)
        store = CosmosStore(address, client, lambda: open_containers(address, client))
        async with TieredReader({TIER: store}, budget_s=1.0, metrics=metrics) as reader:
            await reader.wait_until_ready(WAIT_S)
            await lose_and_find_its_token(reader, identity, clock)
    # A follower warns, too, if it looks for a newer release meanwhile.
    warned = [one.name for one in caplog.records if one.levelname == "WARNING" and "follower" not in one.name]
    assert warned == ["stores.cosmos.requests", "serve.tiers"] * 2, "lost, and found, by both"


async def lose_and_find_its_token(reader: TieredReader, identity: ShortLived, clock: FakeClock) -> None:
    async def sources() -> set[str]:
        return {(await reader.personal(str(n))).source for n in range(60)}

    async def is_personal() -> bool:
        return "personal" in await sources()

    await until(is_personal, "no list is personal")
    identity.error = "the identity has no such tenant"
    clock.now += 61
    assert await sources() == {"popular"}
    (tier,) = reader.tiers
    assert tier.error is not None
    assert "gives no token" in tier.error
    text = Lists(reader).prometheus_text().decode()
    kinds = 'hotplate_store_failures_total{kind="unauthorized",store="cosmos+http"}'
    assert f"{kinds} 5" in text, "as many as open the circuit"
    identity.error = ""
    clock.now += TOKEN_PAUSE_S
    await until(is_personal, "no list is personal again")
    assert identity.requests == 3
