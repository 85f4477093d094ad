"""What more than one file of these tests uses."""

import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

from hotplate.stores.redis.store import RedisStore, open_url
from tests.support import patience
from tests.support.redis_server import RedisServer


@pytest.fixture
def real_limits() -> None:
    """Keep the limits of the store, for a test in which a server does not answer."""


@pytest.fixture(autouse=True)
def limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without `real_limits`, no call fails because a busy machine is late."""
    with pytest.MonkeyPatch.context() as patch:
        if "real_limits" not in request.fixturenames:
            patience.install(patch.setattr)
        yield


@pytest.fixture
def brief_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores wait briefly for replicas, in a test in which one acknowledges nothing."""
    for name in ("store.SEAL_WAIT_S", "store.CONTROL_WAIT_S", "writer.CONTROL_WAIT_S"):
        monkeypatch.setattr(f"hotplate.stores.redis.{name}", 0.1)


@pytest.fixture
def prefix() -> str:
    return secrets.token_hex(4)


@pytest.fixture
async def redis(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    store = open_url(redis_server.url(prefix=prefix))
    yield store
    await store.close()
