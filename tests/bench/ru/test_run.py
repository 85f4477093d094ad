"""The sweep and measured charges against an emulator that stands for an account, which is left as it was."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from azure.cosmos import CosmosClient
from rich.console import Console

from hotplate.base.report import print_report
from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.errors import BenchFailed
from hotplate.bench.ru.measured_charges import Charge, MeasuredCharges, measure, plan
from hotplate.bench.ru.sandbox import Sandbox, sandbox
from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.charges import load
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.url import Throughput, parse
from hotplate.stores.errors import StoreError
from tests.support.command import hotplate
from tests.support.cosmos_server import Emulator, emulator, emulator_thread
from tests.support.processes import run_process

pytestmark = pytest.mark.timeout(300)
soak = pytest.mark.soak

SHORT = ("--levels", "400", "--duration", "2s")


@pytest.fixture
def account() -> Iterator[Emulator]:
    """An account in which somebody has a container already."""
    with emulator() as emulated:
        asyncio.run(fill(url_of(emulated)))
        yield emulated


async def fill(url: str) -> None:
    address = parse(url, {})
    client = SignedClient(address)
    containers = CosmosAccount(address)
    await containers.create_database()
    await containers.create_container("theirs", Throughput(400))
    await client.create("theirs", {"id": "a"})
    await containers.close()
    await client.close()


def url_of(account: Emulator) -> str:
    return "cosmos+" + account.endpoint + "db"


def containers(account: Emulator) -> set[tuple[str, str, int | None]]:
    """Return all containers by name, with their resource ids and RU/s."""
    client = CosmosClient(account.endpoint, account.key)
    present = set[tuple[str, str, int | None]]()
    for database in client.list_databases():
        proxy = client.get_database_client(database["id"])
        for container in proxy.list_containers():
            throughput = proxy.get_container_client(container["id"]).get_throughput()
            present.add((f"{database['id']}/{container['id']}", container["_rid"], throughput.offer_throughput))
    return present


def databases(account: Emulator) -> set[str]:
    return {name.partition("/")[0] for name, _, _ in containers(account)}


def sweep_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "hotplate", "bench", "ru", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "TERM": "dumb"}
    return run_process(*sweep_command(*arguments), code=None, timeout=280, env=environment)


def test_without_confirmation_nothing_is_created(
    account: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = containers(account)
    for answer, code in (("n\n", 1), ("", 2)):
        arguments = ("--account", url_of(account), *SHORT, "--out", tmp_path / "found")
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        done = hotplate("bench", "ru", *arguments)
        assert done.returncode == code
        assert "USD" in done.stderr
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


def test_created_resources_are_dropped_after_an_error(account: Emulator) -> None:
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


def test_an_error_is_named_with_that_on_dropping_the_database() -> None:
    """Only that a database costs money was reported of an emulator that died, and not what failed."""
    with ExitStack() as stack:
        account = stack.enter_context(emulator())

        def fail() -> None:
            with sandbox(url_of(account), 400, {}) as opened, opened.container("items", 400):
                stack.close()
                raise BenchFailed("no list came")

        with pytest.raises(
            BenchFailed, match=r"^no list came; the database was not dropped: .* cannot be reached"
        ) as raised:
            fail()
    assert "money" not in str(raised.value)


def test_an_account_of_two_regions_is_read_in_one() -> None:
    """Hedged reads spent the RU/s of the other region: 410 of 400."""
    with emulator("--second-region", "0") as account, sandbox(url_of(account), 400, {}) as opened:
        names = opened.regions()
        assert len(names) == 2
        assert "failover=no" in opened.url

        async def readable(url: str) -> bool:
            client = SignedClient(parse(url, {}))
            try:
                await client.read("nothing", "none", 5.0)
            except StoreError:
                return client.has_second_region
            finally:
                await client.close()
            raise AssertionError("a container that does not exist was read")

        assert not asyncio.run(readable(opened.url))
        assert asyncio.run(readable(opened.url.replace("failover=no&", "")))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("unauthorized", "does not accept our credentials; check HOTPLATE_COSMOS_KEY"),
        ("forbidden", "forbids this; give the identity the role"),
    ],
)
def test_an_account_that_refuses_is_explained(account: Emulator, fault: str, sentence: str) -> None:
    faults = [{"kind": fault}]
    request = urllib.request.Request(account.endpoint + "__emulation/faults", json.dumps(faults).encode(), method="PUT")
    urllib.request.urlopen(request).close()
    opened = Sandbox(url_of(account), {})
    with pytest.raises(BenchFailed, match=re.escape(sentence)):
        opened.regions()


def test_a_write_region_that_is_down_is_explained() -> None:
    opened = Sandbox("cosmos+http://127.0.0.1:1/db", {})
    with pytest.raises(BenchFailed, match=r"cannot be reached; check its name, its firewall, and whether its write"):
        opened.regions()


@soak
def test_levels_of_autoscale_are_measured(tmp_path: Path) -> None:
    done = run("--autoscale", "--levels", "1k", "--json", "--out", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    assert row(json.loads(done.stdout), "1,000 RU/s, autoscale", "reads/s")["value"] == pytest.approx(1_000, rel=0.05)


@soak
def test_an_account_beyond_the_deadline_is_not_computed(tmp_path: Path) -> None:
    """An account 70 ms away gave "0 of 400 reads/s", computed, and exit code 0."""
    done = run("--levels", "400", "--latency", "p50=70ms,p99=75ms", "--out", tmp_path / "found")
    assert done.returncode == 1, done.stdout
    assert "deadline" in done.stdout + done.stderr


@soak
def test_a_low_level_through_a_service_is_within_2_percent_of_ru_by_charge(tmp_path: Path) -> None:
    done = run("--levels", "400", "--json", "--out", tmp_path / "found")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    reads = row(report, "400 RU/s", "reads/s")
    assert reads["note"] == "", report["notes"]
    assert reads["value"] == pytest.approx(400 / row(report, "400 RU/s", "charge of a read")["value"], rel=0.02)
    assert row(report, "400 RU/s", "429s at 110 % load")["value"] == pytest.approx(1 - 1 / 1.1, abs=0.02)
    assert row(report, "400 RU/s", "p99")["value"] > row(report, "400 RU/s", "p50")["value"] > 4_000
    assert (tmp_path / "found.html").exists()


def row(report: dict[str, Any], subject: str, figure: str) -> dict[str, Any]:
    (matching,) = (
        candidate for candidate in report["rows"] if (candidate["subject"], candidate["figure"]) == (subject, figure)
    )
    return dict(matching)


OURS = load()
THEIRS = """
[read]
points = [[1, 1.25], [2, 1.50]]
strong_factor = 2.0
missing = 1.5
[write]
points = [[1, 6.0], [2, 8.0]]
replace_share = 0.9
term = 0.2
refused_share = 1.2
[query]
base = 2.5
item_share = 0.8
[metadata]
read = 3.0
write = 4.95
[size]
system_properties = true
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("charges") / "theirs.toml"
    path.write_text(THEIRS)
    return path


@pytest.fixture(scope="module")
def url(theirs: Path) -> Iterator[str]:
    with emulator_thread(EmulatorSettings(port=0, charges=theirs)) as (emulator, _):
        url = f"cosmos+{emulator.endpoint}db"
        yield url


@pytest.fixture(scope="module")
def measured(url: str) -> MeasuredCharges:
    return measure(plan(url, "1,2"), OURS, lambda _: None)


def test_charges_are_shown_with_the_hundredths_that_azure_reports() -> None:
    """A charge of 13.34 RU was shown as 13.3."""
    charges = MeasuredCharges("an account", "today", [Charge("upsert", 4, 13.34, 13.01)], {}, OURS)
    text = io.StringIO()
    print_report(charges.report(), Console(file=text, width=80))
    assert re.search(r"upsert, 4 KB +13\.34 +13\.01 ", text.getvalue()), text.getvalue()


def test_deviations_of_charges_have_a_sign() -> None:
    """They were 2.5 and -2.4 %."""
    rows = [Charge("upsert", 4, 13.34, 13.01, 0.02), Charge("read", 4, 12.7, 13.01)]
    report = MeasuredCharges("an account", "today", rows, {}, OURS).report()
    text = io.StringIO()
    print_report(report, Console(file=text, width=80))
    assert re.search(r"upsert, 4 KB +13\.34 +13\.01 +\+2\.5 %\n", text.getvalue()), text.getvalue()
    assert re.search(r"read, 4 KB +12\.70 +13\.01 +-2\.4 %\n", text.getvalue()), text.getvalue()
    assert report.sentence.endswith("medians of 3, which differ by at most 0.02 RU.")


def test_measured_charge_file_matches_the_account(measured: MeasuredCharges, theirs: Path, tmp_path: Path) -> None:
    path = tmp_path / "charges.toml"
    path.write_text(measured.to_toml())
    charges = load(path)
    expected = load(theirs)
    assert charges.read_points[:2] == expected.read_points
    assert charges.write_points[:2] == expected.write_points
    for name in ("write_replace_share", "read_missing"):
        assert getattr(charges, name) == pytest.approx(getattr(expected, name), abs=0.02), name
    assert charges.query_base == OURS.query_base
    assert charges.size_system_properties is OURS.size_system_properties
    assert charges.create(2048, 0) == expected.create(2048, 0)
    assert charges.replace(1024, 2048, 0, 0) == pytest.approx(expected.replace(1024, 2048, 0, 0), abs=0.02)
