"""What the doctor finds out about real Redis servers, and that it leaves no trace there."""

import asyncio
import time
from pathlib import Path

import pytest

from hotplate.stores.redis import examination
from hotplate.stores.redis.url import parse
from hotplate.stores.store import Level
from tests.support.redis_server import RedisServer, replica_of, running, users_of_the_guide
from tests.support.service import a_list, publish_to, serving
from tests.support.stores import look
from tests.support.waiting import until_true


async def test_server_without_persistence_has_one_warning(redis_server: RedisServer, prefix: str) -> None:
    url = redis_server.url(prefix=prefix)
    await publish_to(url, {"user:1": a_list("a")})
    before = sorted(redis_server.execute_command("KEYS", f"*{prefix}*")), redis_server.calls("set")
    findings = await look(url)
    flaws = {finding.subject for finding in findings.values() if finding.level != Level.OK}
    assert flaws - {"reading"} == {"persistence"}  # how fast a busy machine reads is its own
    assert "appendonly" in findings["persistence"].sentence
    assert findings["server"].sentence.startswith(("Redis", "Valkey"))
    assert findings["may publish"].sentence == "yes"
    assert (sorted(redis_server.execute_command("KEYS", f"*{prefix}*")), redis_server.calls("set")) == before


@pytest.mark.parametrize(
    ("url", "level", "part"),
    [
        ("redis://u:secret@cache.example:6379/0", Level.WARNING, "the password crosses the network unencrypted"),
        ("redis://cache.example:6379/0", Level.WARNING, "without a password"),
        ("redis://u:secret@127.0.0.1:6379/0", Level.OK, "within this machine"),
        ("rediss://u:secret@cache.example:6379/0", Level.OK, "TLS"),
    ],
)
def test_unencrypted_password_over_a_network_is_a_warning(url: str, level: Level, part: str) -> None:
    transport = examination._transport(parse(url, {}))
    assert (transport.level, part in transport.sentence) == (level, True)
    assert "secret" not in transport.sentence


async def test_eviction_of_rows_is_an_error_and_snapshots_are_named(tmp_path: Path, prefix: str) -> None:
    with running(tmp_path, "--maxmemory", "40mb", "--maxmemory-policy", "allkeys-lru", "--save", "60 1") as server:
        url = server.url(prefix=prefix)
        await publish_to(url, {"user:1": a_list("a")})
        findings = await look(url)
    assert findings["eviction"].level == Level.ERROR
    assert "set maxmemory-policy to noeviction" in findings["eviction"].sentence
    assert not findings["eviction"].prevented
    assert (findings["memory"].level, "of 40.0 MB" in findings["memory"].sentence) == (Level.OK, False)
    assert (findings["persistence"].level, "60 1" in findings["persistence"].sentence) == (Level.OK, True)
    assert findings["room"].level == Level.OK


async def test_full_server_is_warned_of_and_read(tmp_path: Path, prefix: str) -> None:
    with running(tmp_path, "--maxmemory-policy", "noeviction", "--appendonly", "yes") as server:
        url = server.url(prefix=prefix)
        await publish_to(url, {"user:1": a_list("a")})
        server.execute_command("CONFIG", "SET", "maxmemory", "1mb")
        findings = await look(url)
    assert findings["eviction"].level == Level.OK
    assert "appendonly" in findings["persistence"].sentence
    for subject, part in (
        ("memory", "raise maxmemory"),
        ("may publish", "maxmemory"),
        ("room", "another release like the live one may not fit"),
    ):
        finding = findings[subject]
        assert (finding.level, part in finding.sentence) == (Level.WARNING, True), finding
    assert findings["may read"].level == Level.OK


async def test_failed_save_is_an_error(tmp_path: Path, prefix: str) -> None:
    with running(tmp_path, "--save", "60 1") as server:
        await publish_to(server.url(prefix=prefix), {"user:1": a_list("a")})
        (tmp_path / "dump.rdb").mkdir()  # which no file can take the place of
        server.execute_command("BGSAVE", "SCHEDULE")

        def has_failed() -> bool:
            return bool(server.execute_command("INFO", "persistence")["rdb_last_bgsave_status"] != "ok")

        await until_true(has_failed)
        saving = (await look(server.url(prefix=prefix)))["persistence"]
    assert (saving.level, "the last save failed" in saving.sentence) == (Level.ERROR, True)


@pytest.mark.parametrize("name", ["", "OPERATORS-CONFIG"], ids=["disabled", "renamed"])
async def test_server_without_config_is_published_to_served_and_examined(
    tmp_path: Path, prefix: str, name: str
) -> None:
    with running(tmp_path, "--rename-command", "CONFIG", name) as server:
        url = server.url(prefix=prefix)
        await publish_to(url, {"user:1": a_list("a")})
        findings = await look(url)
        with serving(tmp_path, "--store", url) as service:
            lists = await asyncio.to_thread(service.get, "/v1/recommendations/1")
    assert {finding.subject for finding in findings.values() if finding.level == Level.ERROR} == set()
    assert findings["may publish"].sentence == "yes"
    assert "unknown" in findings["persistence"].sentence
    assert "CONFIG GET is not allowed" in findings["persistence"].sentence
    assert lists.status == 200
    assert lists.json["items"][0]["id"] == "a"


async def test_missing_rights_of_a_user_are_reported(tmp_path: Path, prefix: str) -> None:
    with running(tmp_path) as server:
        await publish_to(server.url(prefix=prefix), {"user:1": a_list("a")})
        urls = users_of_the_guide(prefix, server.execute_command, server.url)
        server.execute_command("ACL", "SETUSER", "stranger", "on", ">SECRET", "+@connection", "resetchannels")
        urls["stranger"] = server.url(prefix=prefix, user="stranger:SECRET@")
        seen = {user: await look(url) for user, url in urls.items()}
    reading = seen["publish"].pop("reading")
    assert reading.level == Level.OK or "spends 50 ms" in reading.sentence  # how fast a busy machine reads is its own
    assert {subject for subject, finding in seen["publish"].items() if finding.level != Level.OK} == set()
    assert seen["publish"]["may publish"].sentence == "yes"
    assert seen["serve"]["may read"].level == seen["serve"]["live"].level == Level.OK
    assert seen["serve"]["may publish"].level == Level.WARNING
    assert "right for a service" in seen["serve"]["may publish"].sentence
    assert Level.ERROR not in {finding.level for finding in seen["serve"].values()}
    assert seen["stranger"]["may read"].level == Level.ERROR
    assert "may not send INFO" in seen["stranger"]["server"].sentence
    assert all("SECRET" not in finding.sentence for finding in seen["stranger"].values())


async def test_a_replica_serves_and_is_not_published_to(tmp_path: Path, prefix: str) -> None:
    with running(tmp_path) as primary:
        await publish_to(primary.url(prefix=prefix), {"user:1": a_list("a")})
        with replica_of(primary, tmp_path / "replica") as replica:
            findings = await look(replica.url(prefix=prefix))
            assert (findings["role"].level, findings["may publish"].level) == (Level.WARNING, Level.WARNING)
            assert "replica" in findings["may publish"].sentence
            assert findings["live"].level == Level.OK
            primary.kill()
            deadline = time.monotonic() + 60
            while replica.execute_command("INFO", "replication")["master_link_status"] == "up":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert (await look(replica.url(prefix=prefix)))["role"].level == Level.ERROR
