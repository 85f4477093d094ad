"""Fixtures that more than one file uses."""

import gc
import importlib
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from math import inf
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from hotplate.stores.connect import connect
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Store
from tests.support.browser import running_browser
from tests.support.clock import FakeClock
from tests.support.cosmos_account import Account, emulated_account
from tests.support.memory_store import MemoryStore
from tests.support.redis_cluster import RedisCluster, running_cluster
from tests.support.redis_server import RedisServer, running
from tests.support.soak import MINUTES, SEED, in_soak
from tests.support.stores import OpenStore

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The time of an example depends on the load of the machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Thousands of tests are collected, and nothing of them is garbage.
gc.disable()

# A separate distribution, which `tests/stores/test_third_party.py` installs and runs.
collect_ignore = ["third_party"]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session", autouse=True)
def slow_machine() -> Iterator[None]:
    """Give each HTTP connect a minute, and let no command print a line for a late stage.

    This holds for all tests, because the other workers may delay any of them by seconds: a connect to an emulator would
    fail, and a command would print more than the one line that `failed` expects. Tests of these two limits set their
    own. Requests keep their time limits.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hotplate.base.http1.CONNECT_S", 60.0)
        patch.setattr("hotplate.cli.terminal.QUIET_S", inf)
        yield


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server shared by all tests that do not disturb it; each uses a separate prefix."""
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A cluster shared by all tests that do not disturb it; each uses a separate prefix."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cosmos_http() -> Iterator[Account]:
    """An emulator shared by all tests that do not disturb it; each uses a separate database."""
    with emulated_account(None) as running_one:
        yield running_one


@pytest.fixture(scope="session")
def cosmos_https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """The same over TLS, with a self-signed certificate."""
    with emulated_account(tmp_path_factory.mktemp("cosmos") / "cosmos.pem") as running_one:
        yield running_one


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The DevTools of a browser shared by all tests of pages."""
    with running_browser(tmp_path_factory.mktemp("browser")) as url:
        yield url


@pytest.fixture(scope="session")
def report_page() -> ModuleType:
    """The module, which takes 0.3 s to load."""
    return importlib.import_module("hotplate.base.report_page")


@pytest.fixture(scope="module")
def two_regions() -> Iterator[Account]:
    """An emulated account in two regions, shared by the tests of one file."""
    with emulated_account(None, "--second-region", "0") as running_one:
        yield running_one


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of Redis in this process wait long for replies."""
    importlib.import_module("tests.support.patience").install(monkeypatch.setattr)


# TLS also has separate tests.
SECURED = [in_soak(scheme) for scheme in ("rediss", "cosmos+https")]


@pytest.fixture(params=["memory", "file", "redis", "cosmos+http", *SECURED])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock) -> AsyncIterator[OpenStore]:
    """Open handles on one and the same store, as several processes would; all are closed at the end."""
    handles = list[Store]()
    memory = MemoryStore(clock)
    if request.param in ("redis", "rediss"):
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url(request.param, secrets.token_hex(4))
        request.getfixturevalue("patience")
    elif request.param.startswith("cosmos"):
        account: Account = request.getfixturevalue(request.param.replace("+", "_"))
        url = account.url(secrets.token_hex(4), ru="30000")

    def open_one() -> Store:
        if request.param == "memory":
            handle: Store = memory
        elif request.param == "file":
            handle = LmdbStore(tmp_path / "store", clock)
        else:
            handle = connect(url)
        handles.append(handle)
        return handle

    yield open_one
    for handle in handles:
        await handle.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store()


def pytest_collection_finish() -> None:
    """Keep the collector from walking, again and again, what thousands of tests and their libraries are made of."""
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    return f"soak: SOAK_MINUTES={MINUTES:g} SOAK_SEED={SEED}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of long tests."""
    for report in terminalreporter.stats.get("passed", []):
        if report.user_properties:
            counted = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {counted}")
