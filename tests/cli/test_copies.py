"""Copies that overlap, as those of two cron jobs do: one writes, the other waits, and both end well."""

import asyncio
import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.command import hotplate
from tests.support.service import a_list, publish_lists

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_copies_at_once_into_an_empty_store_all_succeed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    live = asyncio.run(publish_lists(source, {f"user:{n:05}": a_list(str(n), "x") for n in range(20_000)}))
    target = f"file://{tmp_path / 'target'}"
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        target = server.url(prefix=secrets.token_hex(4))
    command = [sys.executable, "-m", "hotplate", "releases", "copy", "--from", f"file://{source}", "--to", target]
    copies = [
        subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    written = list[int]()
    for one in copies:
        stdout, stderr = one.communicate(timeout=100)
        assert one.returncode == 0, stderr
        written.append(json.loads(stdout)["rows_written"])
    assert sorted(written) == [0, 0, 20_001]
    listed = json.loads(hotplate("releases", "list", "--store", target, "--json").stdout)
    assert [(entry["id"], entry["state"]) for entry in listed["releases"]] == [(live, "live")]
    assert hotplate("releases", "verify", "--store", target).returncode == 0
