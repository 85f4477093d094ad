"""The sweep against an emulator as a process that stands for an account, which is left as it was."""

import asyncio
import io
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hotplate.bench.ru.sandbox import sandbox
from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Throughput, parse
from tests.support.command import hotplate
from tests.support.cosmos_server import Emulator, emulator

pytestmark = pytest.mark.timeout(300)
soak = pytest.mark.soak

SHORT = ("--levels", "400", "--duration", "2s")


@pytest.fixture
def account() -> Iterator[Emulator]:
    """An account in which somebody has a container already."""
    with emulator() as made:
        asyncio.run(fill(url_of(made)))
        yield made


async def fill(url: str) -> None:
    address = parse(url, {})
    client = SignedClient(address)
    made = CosmosAccount(address)
    await made.create_database()
    await made.create_container("theirs", Throughput(400))
    await client.create("theirs", {"id": "a"})
    await made.close()
    await client.close()


def url_of(account: Emulator) -> str:
    return "cosmos+" + account.endpoint + "db"


def containers(account: Emulator, certificate: Path | None = None) -> set[tuple[str, str, str]]:
    """Return of all containers RU spent, 429s and RU/s, by partition."""
    context = ssl.create_default_context(cafile=certificate) if certificate else None
    with urllib.request.urlopen(account.endpoint + "__emulation/metrics", context=context) as answer:
        text = answer.read().decode()
    found = re.findall(r'emulator_partition_(\w+)\{container="([^"]+)",partition="\d+"\} (\S+)', text)
    return {(container, name, value) for name, container, value in found}


def databases(account: Emulator) -> set[str]:
    return {container.partition("/")[0] for container, _, _ in containers(account)}


def sweep_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "hotplate", "bench", "ru", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sweep_command(*arguments), capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | {"COLUMNS": "200", "TERM": "dumb"},
    )  # fmt: skip


def test_without_a_yes_nothing_is_made(account: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = containers(account)
    for answer, code in (("n\n", 1), ("", 2)):
        arguments = ("--account", url_of(account), *SHORT, "--out", tmp_path / "found")
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        done = hotplate("bench", "ru", *arguments)
        assert done.returncode == code
        assert "USD" in done.stderr
        assert "othing was created" in done.stderr
    assert containers(account) == before
    assert not (tmp_path / "found.json").exists()


@soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_report_and_nothing_else(account: Emulator, tmp_path: Path, number: signal.Signals) -> None:
    before = containers(account)
    command = sweep_command("--account", url_of(account), "--yes", "--levels", "1k", "--out", tmp_path / "found")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while containers(account) == before:
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(5)  # into a trial, or thereabouts: it may come anywhere
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert containers(account) == before
    assert json.loads((tmp_path / "found.json").read_text())["interrupted"] is True


@soak
def test_account_that_dies_leaves_a_report_of_finished_levels(account: Emulator, tmp_path: Path) -> None:
    arguments = ("--yes", *SHORT, "--item-kb", "1,2", "--out", tmp_path / "found")
    command = sweep_command("--account", url_of(account), *arguments)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("lists of 2 KB" in line for line in process.stderr)
        os.kill(account.pid, signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    made = json.loads((tmp_path / "found.json").read_text())
    assert row(made, "400 RU/s", "reads/s")["value"] > 0
    assert any("until you drop it" in each for each in made["failures"])


def test_what_is_made_is_dropped_after_an_error(account: Emulator) -> None:
    before = databases(account)

    class OddError(Exception):
        pass

    def fail() -> None:
        with sandbox(url_of(account), 400, {}) as opened, opened.container("items", 400):
            assert databases(account) != before
            raise OddError

    with pytest.raises(OddError):
        fail()
    assert databases(account) == before


@soak
def test_low_levels_through_a_service_are_within_2_percent_of_ru_by_charge(tmp_path: Path) -> None:
    done = run("--levels", "400,1k", "--json", "--out", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    for ru in (400, 1000):
        subject = f"{ru:,} RU/s"
        found = row(made, subject, "reads/s")
        assert found["note"] == "", made["notes"]
        assert found["value"] == pytest.approx(ru / row(made, subject, "charge of a read")["value"], rel=0.02)
        assert row(made, subject, "429s at 110 % load")["value"] == pytest.approx(1 - 1 / 1.1, abs=0.02)
        assert row(made, subject, "p99")["value"] > row(made, subject, "p50")["value"] > 4_000
    assert (tmp_path / "found.html").exists()


def row(made: dict[str, Any], subject: str, figure: str) -> dict[str, Any]:
    (found,) = (each for each in made["rows"] if (each["subject"], each["figure"]) == (subject, figure))
    return dict(found)
