"""Stores whose lists are read by the vendors' clients, which `bench stores` compares with ours."""

import secrets

import pytest

from hotplate.bench.options import VENDOR
from hotplate.bench.process import free_port
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseNotFound, StoreUnavailable
from hotplate.stores.store import Row
from hotplate.testing import FIRST, SECOND, release_ref, write_release

ROWS = [Row("popular:", b'{"id":"p"}'), Row("user:1", b'{"id":"a"}'), Row("user:2", b'{"id":"b"}')]
TIMEOUT_S = 30.0
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")  # azure-cosmos's, of an emulator


@pytest.fixture(params=["redis_server", "cosmos_http"])
def url(request: pytest.FixtureRequest) -> str:
    place = request.getfixturevalue(request.param)
    name = secrets.token_hex(4)
    return str(place.url(prefix=name) if request.param == "redis_server" else place.url(name))


async def test_vendors_client_reads_what_the_store_reads(url: str) -> None:
    store = connect(url)
    await write_release(store, FIRST, ROWS)
    by_vendor = connect(VENDOR + url)
    keys = ["user:2", "user:absent", "popular:", "user:1"]
    for _ in range(2):
        results = await by_vendor.get_many(release_ref(FIRST), keys, timeout_s=TIMEOUT_S)
        assert results == await store.get_many(release_ref(FIRST), keys, timeout_s=TIMEOUT_S)
    assert (await by_vendor.catalogue()).version == (await store.catalogue()).version
    await by_vendor.close()
    await store.close()


async def test_redis_py_finds_no_row_in_an_absent_release(request: pytest.FixtureRequest) -> None:
    by_vendor = connect(VENDOR + request.getfixturevalue("redis_server").url(prefix=secrets.token_hex(4)))
    with pytest.raises(ReleaseNotFound):
        await by_vendor.get_many(release_ref(SECOND), ["user:1"], timeout_s=TIMEOUT_S)
    await by_vendor.close()


@pytest.mark.parametrize("url", ["vendor+redis://127.0.0.1:{}/0", "vendor+cosmos+http://127.0.0.1:{}/d"])
async def test_vendors_client_without_a_server_is_unavailable(url: str) -> None:
    by_vendor = connect(url.format(free_port()))
    with pytest.raises(StoreUnavailable):
        await by_vendor.get_many(release_ref(FIRST), ["user:1"], timeout_s=TIMEOUT_S)
    await by_vendor.close()
