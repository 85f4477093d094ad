"""Lookups through azure-cosmos: the contract, refusals in our words, and that it is the SDK that reads."""

import secrets
from collections.abc import AsyncIterator

import pytest

from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.store import Row, Store
from hotplate.testing import FIRST, OpenStore, StoreContract, ref, write
from tests.support.cosmos_account import Account, Counted

ROWS = [Row("popular:", b'{"id":"p"}'), Row("user:1", b'{"id":"a"}')]
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # the SDK's, of an emulator on loopback


@pytest.mark.soak
class TestThroughTheSdk(StoreContract):
    @pytest.fixture
    def open_store(self, cosmos_http: Account) -> OpenStore:
        url = cosmos_http.url(secrets.token_hex(4), ru="30000", client="sdk")
        return lambda: connect(url)


@pytest.fixture
async def stored(cosmos_http: Account) -> AsyncIterator[tuple[Store, Counted]]:
    counted = Counted()
    store = connect(cosmos_http.url(secrets.token_hex(4), ru="1000", client="sdk"), counted)
    await write(store, FIRST, ROWS)
    yield store, counted
    await store.close()


async def test_the_sdk_reads_lists_and_absent_keys(stored: tuple[Store, Counted], cosmos_http: Account) -> None:
    store, counted = stored
    found = await store.get_many(ref(FIRST), ["user:1", "user:2", "popular:"], timeout_s=5.0)
    assert found == [ROWS[1].value, None, ROWS[0].value]
    before_ru, before = counted.ru, cosmos_http.requests("read item")
    assert await store.get_many(ref(FIRST), ["user:1"], timeout_s=5.0) == [ROWS[1].value]
    assert counted.ru == before_ru + 1.0
    assert cosmos_http.requests("read item") == before + 1


async def test_what_is_refused_and_what_is_late_fails_the_slot(
    stored: tuple[Store, Counted], cosmos_http: Account
) -> None:
    store, counted = stored
    await store.get_many(ref(FIRST), ["user:1"], timeout_s=5.0)
    cosmos_http.inject_faults({"operation": "read item", "kind": "forbidden"})
    try:
        with pytest.raises(StoreUnavailable, match="forbids this"):
            await store.get_many(ref(FIRST), ["user:1"], timeout_s=5.0)
    finally:
        cosmos_http.inject_faults()
    assert counted.kinds[-1] == "forbidden"
    with pytest.raises(StoreUnavailable, match="in time"):
        await store.get_many(ref(FIRST), ["user:1"], timeout_s=1e-6)


def test_another_client_is_refused() -> None:
    with pytest.raises(StoreMisused, match=r"client=fast .* is not known; there are signed, sdk"):
        connect("cosmos://account/database?client=fast")
