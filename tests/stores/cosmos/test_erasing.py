"""A container is deleted only while the catalogue, read before each attempt, allows it."""

import secrets
from collections.abc import AsyncIterator

import pytest

from hotplate.stores.catalogue import Catalogue
from hotplate.stores.connect import connect, run_on
from hotplate.stores.errors import ReleaseConflict
from hotplate.stores.store import Row, Store
from tests.support.cosmos_account import Account
from tests.support.stores import FIRST, allow_erasure, begin_draft, release_ref, scan_rows, write_release

ROWS = [Row(f"user:{number}", b"list") for number in range(5)]
UNAVAILABLE: dict[str, object] = {"kind": "unavailable", "operation": "delete container"}


@pytest.fixture
def url(cosmos_http: Account) -> str:
    return cosmos_http.url(secrets.token_hex(4), ru="30000")


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    opened = connect(url)
    await begin_draft(opened, FIRST)
    await write_release(opened, FIRST, ROWS)
    yield opened
    await opened.close()


async def test_deletion_is_not_repeated_once_the_catalogue_forbids_it(store: Store, cosmos_http: Account) -> None:
    cosmos_http.inject_faults(UNAVAILABLE)
    checks = list[Catalogue]()

    def allow_once(catalogue: Catalogue) -> None:
        checks.append(catalogue)
        if len(checks) > 1:
            cosmos_http.inject_faults()
            raise ReleaseConflict("it is live again")

    with pytest.raises(ReleaseConflict, match="live again"):
        await store.erase(release_ref(FIRST), allow_once)
    assert len(checks) == 2
    assert await scan_rows(store, FIRST) == ROWS
    await store.erase(release_ref(FIRST), allow_erasure)
    assert await store.incarnations() == []


async def test_container_restored_during_deletion_is_kept(store: Store, url: str) -> None:
    async def restore(other: Store) -> None:
        await other.erase(release_ref(FIRST), allow_erasure)
        await write_release(other, FIRST, ROWS)

    def allow(_: Catalogue) -> None:
        run_on(url, restore)

    with pytest.raises(ReleaseConflict, match="was restored while it was being erased"):
        await store.erase(release_ref(FIRST), allow)
    assert await scan_rows(store, FIRST) == ROWS
