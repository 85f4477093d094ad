"""What is particular to `driver=sdk`: Entra ID through azure-identity, silent loggers, an extra that may be missing."""

import asyncio
import json
import logging
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Self
from urllib.request import urlopen

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError

from stores.cosmos.driver import Driver
from stores.cosmos.errors import CosmosUnavailable
from stores.cosmos.sdk.driver import SdkDriver
from stores.cosmos.throughput import Throughput
from stores.errors import StoreMisused, StoreUnavailable
from tests.support.cosmos_drivers import Account, Counted, account

PATIENT_S = 5.0


class Credential:
    """An identity whose tokens come from the emulator's test issuer, where it has any."""

    def __init__(self, far: Account | None = None, life_s: int = 3600) -> None:
        self.far = far
        self.life_s = life_s
        self.closed = 0

    async def get_token(self, *scopes: str, **_: object) -> AccessToken:
        assert scopes
        if self.far is None:
            raise ClientAuthenticationError("no identity here\nand much else")
        issued = await asyncio.to_thread(self._issue, self.far)
        return AccessToken(issued, int(time.time()) + 3600)

    def _issue(self, far: Account) -> str:
        url = f"{far.emulator.endpoint}__emulation/token?life_s={self.life_s}"
        with urlopen(url, context=ssl.create_default_context(cafile=str(far.certificate)), timeout=10) as answer:
            return str(json.load(answer)["access_token"])

    async def close(self) -> None:
        self.closed += 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    with account(tmp_path_factory.mktemp("tls") / "ca.pem", "--entra-issuer") as running:
        yield running


@pytest.fixture
async def filled(far: Account) -> AsyncIterator[Driver]:
    """One with the account's key, and an item to be read."""
    far.misbehave()
    driver = SdkDriver(far.address("d"), Counted())
    await driver.create_database()
    await driver.create_container("c", Throughput(4000))
    await driver.upsert("c", {"id": "a"})
    yield driver
    await driver.close()
    far.misbehave()


@pytest.mark.usefixtures("filled")
async def test_an_identity_reads_and_writes_and_is_closed_with_its_driver(far: Account) -> None:
    credential = Credential(far)
    driver = SdkDriver(replace(far.address("d"), key=None), Counted(), credential)
    assert await driver.read("c", "a", PATIENT_S) is not None
    assert (await driver.upsert("c", {"id": "b"})).done
    assert (await driver.look("c", "b")).item is not None
    await driver.close()
    await driver.close()
    assert credential.closed == 1


@pytest.mark.parametrize("life_s", [None, -10])
async def test_an_identity_that_is_not_known_or_whose_token_ended_is_told(far: Account, life_s: int | None) -> None:
    credential = Credential() if life_s is None else Credential(far, life_s)
    meter = Counted()
    driver = SdkDriver(replace(far.address("d"), key=None), meter, credential)
    with pytest.raises(CosmosUnavailable, match="does not let us in: Entra ID") as error:
        await driver.read("c", "a", PATIENT_S)
    assert error.value.kind == "unauthorized"
    assert "much else" not in str(error.value)
    assert "eyJ" not in str(error.value)
    assert set(meter.kinds) == {"unauthorized"}
    await driver.close()


async def test_an_attempt_that_fails_is_no_line_in_a_log_and_nothing_secret_is_in_any(
    far: Account, filled: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for kind in ("throttle", "unavailable", "timeout", "gone", "reset"):
            far.misbehave({"kind": kind, "operation": "read item"})
            with pytest.raises(StoreUnavailable):
                await filled.read("c", "a", PATIENT_S)
        far.misbehave()
        await filled.read("c", "a", PATIENT_S)
    loud = [record for record in caplog.records if record.name != "asyncio" and record.levelno >= logging.INFO]
    assert loud == []
    assert far.emulator.key not in caplog.text


async def test_what_it_is_told_of_regions_is_one_line_a_change(caplog: pytest.LogCaptureFixture) -> None:
    with account(None, "--second-region", "0") as regions:
        driver = SdkDriver(regions.address("d", region="Emulated East"), Counted())
        await driver.create_database()
        await driver.create_container("c", Throughput(400))
        await driver.upsert("c", {"id": "a"})
        regions.misbehave({"kind": "region-gone", "region": 1})
        for _ in range(20):
            assert await driver.read("c", "a", PATIENT_S) is not None
        await driver.close()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(": ")[2] for line in told] == [
        "Emulated East cannot be read (reset); reading from Emulated West"
    ]


def test_a_key_that_is_none_is_refused_before_anything_is_asked(far: Account) -> None:
    with pytest.raises(StoreMisused, match="not base64"):
        SdkDriver(replace(far.address("d"), key="geheim!"), Counted())


def test_without_its_extra_the_driver_says_what_to_install() -> None:
    program = (
        "import sys\nsys.modules['azure'] = None\nfrom stores.connect import connect\n"
        "try:\n    connect('cosmos+http://127.0.0.1:1/d?driver=sdk')\nexcept Exception as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'hotplate[cosmos]'" in done.stdout
