"""What more than one file of these tests uses."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cosmos_account import Account
from tests.support.redis_server import RedisServer


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["file", "redis", "cosmos"])
def url(request: pytest.FixtureRequest, tmp_path: Path, redis_server: RedisServer, cosmos_http: Account) -> str:
    """The URL of a store that processes of its own open."""
    name = secrets.token_hex(4)
    urls = {"redis": redis_server.url(prefix=name), "cosmos": cosmos_http.url(name, ru="30000")}
    return urls.get(request.param, f"file://{tmp_path}/store")
