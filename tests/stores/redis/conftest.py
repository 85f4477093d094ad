"""What more than one file of these tests uses."""

import secrets
from collections.abc import AsyncIterator

import pytest

from hotplate.stores.redis.store import RedisStore, open_url
from tests.support.redis_server import RedisServer


@pytest.fixture
def prefix() -> str:
    return secrets.token_hex(4)


@pytest.fixture
async def redis(redis_server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    store = open_url(redis_server.url(prefix=prefix))
    yield store
    await store.close()
