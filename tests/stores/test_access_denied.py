"""A wrong password or a missing right is the same error in each store."""

import base64
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hotplate.stores.connect import connect, opened
from hotplate.stores.errors import AccessDenied
from tests.support.command import failed, hotplate
from tests.support.cosmos_account import Account
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer, running
from tests.support.service import a_list, publish_to, serving, until
from tests.support.stores import FIRST, publish, release_ref

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run the block without the rights of root."""
    former = os.geteuid()
    os.seteuid(NOBODY if former == 0 else former)
    try:
        yield
    finally:
        os.seteuid(former)


async def check_denied(url: str, part: str, secret: str = "wrong") -> None:
    """Check that reads raise AccessDenied, also soon after the first one, and the command's exit code.

    No message shows the secret.
    """
    async with opened(url) as store:
        for _ in range(2):
            for call in (store.catalogue(), store.get_many(release_ref(FIRST), ["user:1"])):
                with pytest.raises(AccessDenied, match=part) as caught:
                    await call
                assert secret not in str(caught.value)
    done = hotplate("releases", "list", "--store", url)
    failed(done, part, code=1)
    assert secret not in done.stderr


async def test_wrong_password_of_redis_is_denied(tmp_path: Path) -> None:
    with running(tmp_path, password="right") as server:
        for user in ("", ":wrong@", "nobody:wrong@"):
            await check_denied(server.url(user=user), "does not accept this user and password")


async def test_wrong_password_of_a_cluster_is_denied(redis_cluster: RedisCluster) -> None:
    await check_denied(redis_cluster.url(user="nobody:wrong@"), "does not accept this user and password")


async def test_missing_right_in_redis_is_denied(redis_server: RedisServer) -> None:
    user = secrets.token_hex(4)
    redis_server.execute_command("ACL", "SETUSER", user, "on", ">open", "~*", "&*", "+@connection")
    await check_denied(redis_server.url(user=f"{user}:open@"), "lacks a permission")


async def test_lookup_without_the_right_gets_the_popular_list(redis_server: RedisServer, tmp_path: Path) -> None:
    user = secrets.token_hex(4)
    redis_server.execute_command("ACL", "SETUSER", user, "on", ">open", "~*", "&*", "+@all")
    url = redis_server.url(prefix=user, user=f"{user}:open@")
    await publish_to(url, {"user:42": a_list("a")})
    with serving(tmp_path, "--store", url) as service:
        until(lambda: service.get("/v1/recommendations/42").json["source"] == "personal")
        redis_server.execute_command("ACL", "SETUSER", user, "-mget")
        answer = service.get("/v1/recommendations/42")
        assert (answer.status, answer.json["source"]) == (200, "popular")


async def test_wrong_key_of_cosmos_db_is_denied(cosmos_http: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    monkeypatch.setenv("HOTPLATE_COSMOS_KEY", key)
    url = cosmos_http.url(f"d{secrets.token_hex(4)}")
    await check_denied(url, "does not accept our credentials; check HOTPLATE_COSMOS_KEY", key)


async def test_file_without_the_rights_is_denied(open_folder: Path) -> None:
    store = connect(f"file://{open_folder / 'store'}")
    await publish(store)
    for path in (open_folder / "store").rglob("*"):
        path.chmod(0)
    with as_nobody():
        with pytest.raises(AccessDenied, match=f"cannot be used by user {os.geteuid()}"):
            await store.catalogue()
        with pytest.raises(AccessDenied):
            await publish(store)
        failed(hotplate("releases", "list", "--store", f"file://{open_folder / 'store'}"), "cannot be used", code=1)
    await store.close()
