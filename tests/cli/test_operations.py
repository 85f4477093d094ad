"""The transcript of docs/operations.md, run as it stands there under load."""

import os
import re
import secrets
import shlex
import shutil
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import patience
from tests.support.balancer import balanced
from tests.support.machine import reader_port
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.redis_server import running
from tests.support.service import until


def transcript(page: str) -> str:
    """Return all that a page, or a part of one, runs."""
    return "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


ENDS = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"


def run(folder: Path, script: str, *, limit_s: float = 200, **environment: str) -> str:
    """Run a script with the services that it leaves behind, and end them; return its output.

    Programs in the folder `bin` of *folder* come first.
    """
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    (folder / "script.sh").write_text(f"{ENDS}\n{script}\n")
    done = run_process(
        "bash",
        "-euo",
        "pipefail",
        "script.sh",
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        timeout=limit_s,
    )
    return done.stdout


if TYPE_CHECKING:
    from tests.support.cosmos_account import Account

PAGE = ROOT / "docs" / "operations.md"
USERS, ITEMS = 60, 30
CALLERS = 2
# What is put behind the transcript: services that it leaves behind end with it, and not before the load has.
STAYS = "touch over; until [ -e ended ]; do sleep 0.1; done"
DEPLOYED = "touch deployed\n"
# What is put around the change of the callers' key: services know the new one before, and no caller has the old after.
KNOWN = """for port in "$A" "$B"; do
    until curl --silent --fail --output /dev/null --header "X-API-Key: $(cat key.new)" \\
        "http://127.0.0.1:$port/v1/recommendations/7"; do sleep 0.1; done
done
"""
MOVED = "touch moved; while [ -e moved ] && [ ! -e ended ]; do sleep 0.1; done\n"
# Tries a command for a minute.
EVENTUALLY = 'eventually() { for _ in {1..600}; do eval "$1" && return; sleep 0.1; done; return 1; }\n'

# The command, on a machine that may halt a process for seconds.
PATIENT = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
{patience.INSTALL}
if sys.argv[1:2] == ["serve"]:
    from hotplate.serve.processes import worker
    worker.FIRST_READ_S = 60.0
from hotplate.__main__ import main
main()
"""


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


def with_events(script: str) -> str:
    """Wait for what the page's pauses are for, which may come later on a busy machine."""
    before, move, after = re.split(r"^(mv key\.new key .*\n)", script, flags=re.MULTILINE)
    script = before + KNOWN + move + MOVED + after
    return EVENTUALLY + re.sub(r"^sleep \d+\n(?:ask .*\n)+", _retried, script, flags=re.MULTILINE)


def _retried(commands: re.Match[str]) -> str:
    pause, *asked = commands[0].splitlines()
    return "\n".join([pause, *(f"eventually {shlex.quote(command)}" for command in asked), ""])


def write_lists(path: Path, shift: int) -> None:
    rows = [f"{user},{(user + shift + rank) % ITEMS},{1 - rank / 10}" for user in range(USERS) for rank in range(10)]
    path.write_text("user,item,score\n" + "\n".join(rows) + "\n")


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_transcript_runs_under_load_without_failed_requests(tmp_path: Path, cosmos_http: "Account") -> None:
    for needed in ("redis-cli", "curl", "bash"):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed} on the PATH")
    write_lists(tmp_path / "lists.csv", 0)
    write_lists(tmp_path / "lists-new.csv", 5)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hotplate").write_text(PATIENT)
    (tmp_path / "bin" / "hotplate").chmod(0o755)
    a, b, c = reader_port(), reader_port(), reader_port()
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis") as redis, ThreadPoolExecutor(1) as thread:
        script = with_settings(
            with_mark(),
            REDIS=f"{redis.url().partition('?')[0]}?prefix=shop",
            COSMOS=cosmos_http.url(secrets.token_hex(4), ru="30000"),
            A=str(a), B=str(b), C=str(c),
        )  # fmt: skip
        script = f"{with_events(script)}\n{STAYS}"
        done = thread.submit(run, tmp_path, script, limit_s=500, TERM="dumb", HOTPLATE_BUDGET="60")
        wait_for(tmp_path / "deployed", done)
        key = tmp_path / "key"
        sent = dict[int, str]()

        def headers() -> dict[str, str]:
            """Return those of the next request, with the present key."""
            sent[threading.get_ident()] = key.read_text().strip()
            return {"X-API-Key": sent[threading.get_ident()]}

        try:
            with balanced(a, b, path="/v1/recommendations/7", callers=CALLERS, headers=headers) as balancer:
                balancer.ports.append(c)
                wait_for(tmp_path / "moved", done)
                until(lambda: [*sent.values()] == [key.read_text().strip()] * CALLERS, "a caller keeps the old key")
                (tmp_path / "moved").unlink(missing_ok=True)
                wait_for(tmp_path / "over", done)
        finally:
            (tmp_path / "ended").touch()  # also after a failure, or the script would wait until its limit
        done.result()
    assert set(balancer.outcomes) == {"200"}, balancer.outcomes
    assert balancer.outcomes["200"] > 1000


def wait_for(path: Path, done: Future[str]) -> None:
    while not (done.done() or path.exists()):  # `run` has a limit
        time.sleep(0.1)
