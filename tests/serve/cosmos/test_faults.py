"""An emulated Cosmos DB that throttles, fails, slows down or loses a region, as its callers see it."""

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hotplate.bench.drills.proxy import Proxy, through
from hotplate.serve.reader import TieredReader
from tests.support.cosmos_account import Account
from tests.support.readers import USERS, WAIT_S, lists, reading, until, until_read
from tests.support.service import publish_to

TIER = "cosmos+http"
# Where an answer of some 930 bytes may be cut; its head has 530.
IN_HEAD, IN_BODY = 100, 700
# What the emulator does.
FAULTS: dict[str, dict[str, object]] = {
    "429": {"kind": "throttle"},
    "503": {"kind": "unavailable"},
    "reads of 1 s": {"kind": "slow", "delay_ms": 1000},
    "connections cut": {"kind": "reset"},
}
every_fault = pytest.mark.parametrize("fault", FAULTS)
with_and_without_another_tier = pytest.mark.parametrize("others", [(), ("file",)], ids=["alone", "with a local tier"])


@pytest.fixture
def url(cosmos: Account) -> Iterator[str]:
    yield cosmos.url(secrets.token_hex(4))
    cosmos.misbehave()


def tiers(url: str, folder: Path, others: tuple[str, ...]) -> list[str]:
    return [url, *(f"{scheme}://{folder}/store" for scheme in others)]


def port_of(cosmos: Account) -> int:
    return int(cosmos.emulator.endpoint.rsplit(":", 1)[1].rstrip("/"))


@asynccontextmanager
async def proxied(cosmos: Account, url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Put a proxy before the account; the block gets it, and the URL that goes through it."""
    async with through(port_of(cosmos)) as proxy:
        yield proxy, url.replace(str(port_of(cosmos)), str(proxy.port))


async def sources(reader: TieredReader) -> Counter[str]:
    """Read the list of each user, one after the other; return how many came from where."""
    return Counter([(await reader.personal(str(user))).source for user in range(USERS)])


@every_fault
@with_and_without_another_tier
async def test_others_answer_during_a_fault_and_the_account_after_it(
    tmp_path: Path, cosmos: Account, url: str, fault: str, others: tuple[str, ...]
) -> None:
    await publish_to(url, lists("r0"))
    await publish_to(f"file://{tmp_path}/store", lists("f0"))
    async with reading(*tiers(url, tmp_path, others)) as reader:
        await until_read(reader, TIER)
        cosmos.misbehave(FAULTS[fault])

        async def is_open() -> bool:
            await reader.personal("1")
            return reader.tiers[0].breaker.is_open

        await until(is_open, "the circuit does not open")
        await until_read(reader, *(("file", "personal") if others else (TIER, "popular")))
        assert reader.tiers[0].error is not None
        cosmos.misbehave()
        await until_read(reader, TIER)


@pytest.mark.parametrize("cut_at", [IN_HEAD, IN_BODY])
async def test_an_answer_that_is_cut_is_read_again_and_never_taken_for_a_list(
    cosmos: Account, url: str, cut_at: int
) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there):
        async with reading(there, budget_s=WAIT_S) as reader:
            await until_read(reader, TIER)
            proxy.cut_at, proxy.cut_every = cut_at, 7
            read = await sources(reader)
            assert proxy.cuts > 5
            assert read["popular"] <= proxy.cuts / 2, "a list that was cut was not read again"
            proxy.cut_at, proxy.cut_every = None, 1
        async with reading(there) as reader:
            proxy.cut_at = cut_at
            await until_read(reader, TIER, "popular")
            proxy.cut_at = None
            await until_read(reader, TIER)


async def test_after_a_new_connection_was_cut_lookups_wait_for_the_next_rather_than_fail_for_want_of_one(
    cosmos: Account, url: str
) -> None:
    await publish_to(url, lists("r0"))
    async with proxied(cosmos, url) as (proxy, there), reading(there, budget_s=WAIT_S) as reader:
        await until_read(reader, TIER)
        proxy.reset()
        proxy.cut_at = IN_HEAD
        first = asyncio.create_task(reader.personal("0"))
        while not proxy.cuts:
            await asyncio.sleep(0)
        proxy.cut_at = None
        answers = await asyncio.gather(*(reader.personal(str(user)) for user in range(1, USERS)))
        assert {answer.source for answer in answers} == {"personal"}
        await first
