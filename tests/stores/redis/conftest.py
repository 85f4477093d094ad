"""What more than one file of these tests uses."""

import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from hotplate.stores.redis.store import RedisStore, open_url
from tests.support import patience
from tests.support.redis_server import OpenRedis, RedisServer, running


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
async def opened() -> AsyncIterator[OpenRedis]:
    """Open stores by URL; all are closed at the end."""
    async with AsyncExitStack() as stack:

        def open_one(url: str, *arguments: Any, **options: Any) -> RedisStore:  # noqa: ANN401 -- those of `open_url`
            store = open_url(url, *arguments, **options)
            stack.push_async_callback(store.close)
            return store

        yield open_one


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def redis(redis_server: RedisServer, prefix: str, opened: OpenRedis) -> RedisStore:
    return opened(redis_server.url(prefix=prefix))
