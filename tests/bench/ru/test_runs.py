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

import pytest

from hotplate.bench.ru.sandbox import PREFIX, sandbox
from hotplate.stores.cosmos.control import AccountContainers
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import Throughput, parse
from tests.support.command import hotplate
from tests.support.cosmos_server import Emulator, emulator

pytestmark = pytest.mark.timeout(300)
soak = pytest.mark.soak

SHORT = ("--levels", "400", "--duration", "1s")


@pytest.fixture
def account() -> Iterator[Emulator]:
    """An account in which somebody has a container already."""
    with emulator() as made:
        asyncio.run(fill(url_of(made)))
        yield made


async def fill(url: str) -> None:
    address = parse(url, {})
    client = RestClient(address)
    made = AccountContainers(address, client)
    await made.create_database()
    await made.create_container("theirs", Throughput(400))
    await client.upsert("theirs", {"id": "a"})
    await client.close()


def url_of(account: Emulator) -> str:
    return "cosmos+" + account.endpoint + "db"


def containers(account: Emulator, certificate: Path | None = None) -> set[tuple[str, str, str]]:
    """Return of all containers RU spent, 429s and RU/s, by partition."""
    context = ssl.create_default_context(cafile=certificate) if certificate else None
    with urllib.request.urlopen(account.endpoint + "__emulation/metrics", context=context) as answer:
        text = answer.read().decode()
    found = re.findall(r'emulator_partition_(\w+)\{container="db/([^"]+)",partition="\d+"\} (\S+)', text)
    return {(container, name, value) for name, container, value in found}


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
        while not any(name.startswith(PREFIX) for name, _, _ in containers(account)):
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(1.5)  # into a trial, or thereabouts: it may come anywhere
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert containers(account) == before
    assert json.loads((tmp_path / "found.json").read_text())["interrupted"] is True


def test_what_is_made_is_dropped_after_an_error(account: Emulator) -> None:
    before = containers(account)

    class OddError(Exception):
        pass

    def fail() -> None:
        with sandbox(parse(url_of(account), {})) as opened:
            opened.create(Throughput(400))
            assert containers(account) != before
            raise OddError

    with pytest.raises(OddError):
        fail()
    assert containers(account) == before


@soak
def test_an_account_over_https_is_left_as_it_was(tmp_path: Path) -> None:
    certificate = tmp_path / "account.pem"
    with emulator("--tls", "--certificate", str(certificate)) as account:
        url = f"{url_of(account)}?ca={certificate}"
        asyncio.run(fill(url))
        before = containers(account, certificate)
        done = run("--account", url, "--yes", *SHORT, "--json", "--out", tmp_path / "found")
        assert containers(account, certificate) == before
    assert "USD" in done.stderr
    (level,) = json.loads(done.stdout)["ru"]["found"]
    assert any(each["charge_ru"] == pytest.approx(1.0) for each in level["trials"])


def test_a_database_that_is_not_there_is_not_made(account: Emulator, tmp_path: Path) -> None:
    elsewhere = url_of(account).removesuffix("db") + "nowhere"
    done = hotplate("bench", "ru", "--account", elsewhere, "--yes", *SHORT, "--out", tmp_path / "found")
    assert done.returncode == 1
    assert "no such database" in done.stderr
