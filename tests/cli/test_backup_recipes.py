"""The recipes of the documentation by which a copy of Redis or Cosmos DB is kept, and brought back."""

import asyncio
import json
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import hotplate
from tests.support.redis_server import RedisServer, running
from tests.support.service import a_list, publish_to

if TYPE_CHECKING:
    from tests.support.cosmos_account import Account

LISTS = {f"user:{n:03}": a_list(str(n), "x") for n in range(300)}


def published(url: str, lists: dict[str, bytes]) -> str:
    return asyncio.run(publish_to(url, lists))


def looked_up(url: str, user: str) -> tuple[str, str, str]:
    done = hotplate("lookup", user, "--store", url, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["release"], found["source"], found["items"][0]["id"]


@pytest.mark.parametrize("kind", ["redis", "cosmos"])
def test_a_copy_in_files_brings_a_store_back_that_lost_everything(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        url, anew = server.url(prefix=secrets.token_hex(4)), server.url(prefix=secrets.token_hex(4))
    else:
        account: Account = request.getfixturevalue("cosmos_http")
        url, anew = account.url(secrets.token_hex(4), ru="30000"), account.url(secrets.token_hex(4), ru="30000")
    live = published(url, LISTS)
    backup = f"file://{tmp_path / 'backup'}"
    for source, target in ((url, backup), (backup, anew)):
        done = hotplate("releases", "copy", "--from", source, "--to", target)
        assert done.returncode == 0, done.stderr
    assert looked_up(anew, "007") == looked_up(url, "007") == (live, "personal", "7")
    assert hotplate("releases", "verify", "--store", anew).returncode == 0


def test_a_dump_of_redis_brings_it_back(tmp_path: Path) -> None:
    redis_cli = shutil.which("redis-cli")
    if redis_cli is None:
        pytest.skip("no redis-cli on the PATH; on Debian or Ubuntu: apt-get install redis-tools")
    with running(tmp_path) as server:
        first = published(server.url(), LISTS)
        dump = tmp_path / "backup.rdb"
        subprocess.run([redis_cli, "-p", str(server.port), "--rdb", str(dump)], check=True, capture_output=True)
        second = published(server.url(), {"user:007": a_list("z")})
        assert looked_up(server.url(), "007") == (second, "personal", "z")
        server.kill()
        shutil.copy(dump, tmp_path / "dump.rdb")
        server.start()
        assert looked_up(server.url(), "007") == (first, "personal", "7")
        assert hotplate("releases", "verify", "--store", server.url()).returncode == 0
        third = published(server.url(), LISTS)
        assert looked_up(server.url(), "008") == (third, "personal", "8")
