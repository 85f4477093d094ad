"""The transcript of docs/operations.md, run as it stands there, under load: no request fails from begin to end."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.balancer import balanced
from tests.support.paths import ROOT
from tests.support.redis_server import running
from tests.support.transcript import free_ports, transcript

if TYPE_CHECKING:
    from tests.support.cosmos_account import Account

PAGE = ROOT / "docs" / "operations.md"
USERS, ITEMS = 60, 30
# What is put around the transcript: services that it leaves behind end with it, and not before the load has.
ENDS = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"
STAYS = "touch over; while [ -e over ]; do sleep 0.1; done"
DEPLOYED = "touch deployed\n"


def with_mark() -> str:
    """Return all that the page runs, in its order; the load begins once it has deployed."""
    before, after = PAGE.read_text().split("\n## Roll out code")
    return transcript(before) + DEPLOYED + transcript(after)


def with_settings(script: str, **settings: str) -> str:
    """Put the test's own values where the page has a reader's; each must be there."""
    for name, value in settings.items():
        script, replaced = re.subn(rf"(export .*\b{name}=)\S+", rf"\g<1>{value}", script, count=1)
        assert replaced == 1, f"the page does not set {name}"
    return script


def write_lists(path: Path, shift: int) -> None:
    rows = [f"{user},{(user + shift + rank) % ITEMS},{1 - rank / 10}" for user in range(USERS) for rank in range(10)]
    path.write_text("user,item,score\n" + "\n".join(rows) + "\n")


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_transcript_runs_under_load_without_one_failed_request(tmp_path: Path, cosmos_http: "Account") -> None:
    for needed in ("redis-cli", "curl", "bash"):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed} on the PATH")
    write_lists(tmp_path / "lists.csv", 0)
    write_lists(tmp_path / "lists-new.csv", 5)
    a, b, c = free_ports(3)
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis") as redis:
        script = with_settings(
            with_mark(),
            REDIS=f"{redis.url().partition('?')[0]}?prefix=shop",
            COSMOS=cosmos_http.url(secrets.token_hex(4), ru="30000"),
            A=str(a), B=str(b), C=str(c),
        )  # fmt: skip
        (tmp_path / "transcript.sh").write_text(f"{ENDS}\n{script}\n{STAYS}\n")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with (tmp_path / "log").open("wb") as log:
            command = ["bash", "-x", "-euo", "pipefail", "transcript.sh"]
            # The balancer probes ten times a second: the default of 5 s is for those that take longer.
            environment = os.environ | {"PATH": path, "TERM": "dumb", "HOTPLATE_DRAIN_DELAY": "0.5"}
            process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        try:
            until_exists(tmp_path / "deployed", process)
            key = tmp_path / "key"
            headers = lambda: {"X-API-Key": key.read_text().strip()}  # noqa: E731 -- read anew for each request
            with balanced(a, b, path="/v1/recommendations/7", callers=2, headers=headers) as balancer:
                balancer.ports.append(c)
                until_exists(tmp_path / "over", process)
            (tmp_path / "over").unlink()
            assert process.wait(timeout=60) == 0
        finally:
            process.terminate()
            process.wait()
    assert set(balancer.outcomes) == {"200"}, balancer.outcomes
    assert balancer.outcomes["200"] > 1000


def until_exists(path: Path, process: subprocess.Popen[bytes]) -> None:
    while not path.exists():
        assert process.poll() is None, (path.parent / "log").read_text()[-4000:]
        time.sleep(0.1)
