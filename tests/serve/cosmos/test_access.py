"""A service that Cosmos DB does not let in: a wrong key, a clock that is off, a token that has ended."""

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from azure.core.credentials import AccessToken

from serve.exposition import Exposition
from serve.lookup import Lookup
from serve.metrics import Metrics
from serve.tiers import Tier
from stores.cosmos.containers import containers_of
from stores.cosmos.meter import Relay
from stores.cosmos.rest.driver import RestDriver
from stores.cosmos.store import CosmosStore
from stores.cosmos.token import PAUSE_S
from stores.cosmos.url import EMULATORS_KEY, KEY
from tests.serve.test_flip import lists
from tests.stores.cosmos.test_token import Issued
from tests.support.clock import FakeClock
from tests.support.cosmos_drivers import account
from tests.support.cosmos_server import emulator
from tests.support.loaded_service import RECOVERY_S, under_load
from tests.support.paths import ROOT
from tests.support.proxy import through
from tests.support.service import publish_to, serving

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
        with emulator("--key-file", str(folder / "key")) as far:
            yield urlsplit(far.endpoint).port or 0
        return
    with subprocess.Popen([sys.executable, "-c", AHEAD], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@pytest.mark.parametrize("why", SENTENCES)
def test_a_service_that_never_saw_a_release_answers_503_with_the_reason(tmp_path: Path, why: str) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(one_that_refuses(why, tmp_path))
        service = stack.enter_context(serving(tmp_path, "--store", f"{TIER}://127.0.0.1:{port}/db"))
        answer = service.get("/v1/recommendations/1")
        assert answer.status == 503
        assert SENTENCES[why] in answer.json["detail"]
        assert service.get("/readyz").status == 503
        told = service.log.read_text()
        assert told.count('"level":"warning"') == 1
        for secret in (EMULATORS_KEY, WRONG):
            assert secret not in told + answer.body.decode()


@pytest.mark.parametrize("why", SENTENCES)
async def test_a_service_that_is_let_in_no_more_goes_on_with_popular_lists_until_it_is_again(
    tmp_path: Path, why: str
) -> None:
    with account(None) as far, one_that_refuses(why, tmp_path) as elsewhere:
        port = urlsplit(far.emulator.endpoint).port or 0
        await publish_to(far.url("db"), lists("r0"))
        async with through(port) as proxy:
            async with under_load(tmp_path, f"{TIER}://127.0.0.1:{proxy.port}/db", seconds=6) as run:
                proxy.target = elsewhere
                proxy.reset()
                await run.until(TIER, "popular")
                assert SENTENCES[why] in await run.until_status("degraded")
                await asyncio.sleep(1)
                proxy.target = port
                proxy.reset()
                assert await run.until(TIER) < RECOVERY_S
                await run.until_status("ready")
                assert await run.counted("hotplate_store_failures_total", kind="unauthorized") > 10
            run.answered(TIER, source="popular")
    told = run.service.log.read_text()
    assert (run.logged("is spared until it answers again"), run.logged('answers again"')) == (1, 1)
    assert run.logged(SENTENCES[why]) <= 2, "once of the catalogue, once of lookups"
    assert EMULATORS_KEY not in told
    assert WRONG not in told


class Brief(Issued):
    """Gives tokens that last a minute by the clock that the test holds."""

    async def get_token(self, *scopes: str) -> AccessToken:
        return AccessToken((await super().get_token(*scopes)).token, int(self.clock()) + 60)


async def test_a_token_that_ends_costs_personal_lists_until_entra_id_gives_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with account(None, "--entra-issuer") as far:
        await publish_to(far.url("db"), lists("r0"))
        clock, relay, metrics = FakeClock(), Relay(), Metrics(1, [TIER])
        clock.now = time.time()
        identity, address = Brief(far.emulator.endpoint, clock), replace(far.address("db"), key=None)
        driver = RestDriver(address, relay, credential=identity, clock=clock)
        tier = Tier(TIER, CosmosStore(address, driver, containers_of(address, driver), relay), metrics)
        lookup = Lookup([tier], metrics, 1.0)
        following = asyncio.create_task(tier.follower.run())
        await tier.follower.looked.wait()

        async def sources() -> set[str]:
            return {(await lookup.personal(str(n), "")).source for n in range(60)}

        assert await sources() >= {"personal"}
        identity.trouble = "the identity has no such tenant"
        clock.now += 61
        assert await sources() == {"popular"}
        assert tier.trouble is not None
        assert "gives no token" in tier.trouble
        text = Exposition(metrics, [tier]).text().decode()
        assert (
            'hotplate_store_failures_total{kind="unauthorized",store="cosmos+http"} 5' in text
        )  # before it was spared
        identity.trouble = ""
        clock.now += PAUSE_S
        async with asyncio.timeout(RECOVERY_S):
            while "personal" not in await sources():
                await asyncio.sleep(0.05)
        assert identity.asked == 3
        assert [record.levelname for record in caplog.records].count("WARNING") == 4, "twice lost, twice found"
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await tier.close()
