"""The client over the wire as a whole: keys, clocks, certificates, and connections that end."""

import asyncio
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.cosmos_emulator.service import Authenticator
from hotplate.bench.process import free_port
from hotplate.stores.cosmos.account import CosmosAccount
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.store import open_url
from hotplate.stores.cosmos.url import parse
from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.store import ChargeCounter, Row
from hotplate.stores.urls import SecretFile
from tests.support.cosmos_account import NAME, PATIENCE_S, Account, emulated_account, filled
from tests.support.cosmos_server import emulator_thread
from tests.support.stores import FIRST, SECOND, release_ref, write_release
from tests.support.streams import listening
from tests.support.tcp_proxy import through

ROWS = [Row("user:1", b"list")]
KEY = "bm90IHRoZSBrZXkgb2YgYW55IGVtdWxhdG9yLCBidXQgb25lIG9mIHRoaXMgdGVzdA=="
ROTATED_KEY = "YW5vdGhlciBrZXkgb2YgdGhlIHNhbWUgYWNjb3VudCwgYXMgYWZ0ZXIgYSByb3RhdGlvbg=="


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with emulated_account(None) as running:
        yield running


async def test_key_from_a_file_is_used_and_never_shown(tmp_path: Path, observer: ChargeCounter) -> None:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    with emulated_account(None, "--key-file", str(path)) as account:
        address = parse(account.url("d"), {"HOTPLATE_COSMOS_KEY_FILE": str(path)})
        client = SignedClient(address, observer)
        containers = CosmosAccount(address)
        await containers.create_database()
        assert KEY not in f"{address!r} {client!r}"
        await containers.close()
        await client.close()


async def test_rotated_key_file_is_read_again_once_the_former_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    monkeypatch.setenv("HOTPLATE_COSMOS_KEY_FILE", str(path))
    monkeypatch.setattr("hotplate.stores.cosmos.requests.KEY_PAUSE_S", 0.0)
    with emulator_thread(EmulatorSettings(port=0, key=KEY)) as (emulator, service):
        store = open_url(Account(emulator).url("d"))
        await write_release(store, FIRST, ROWS)

        service.authenticator = Authenticator(ROTATED_KEY)
        for content in (KEY, ""):  # the file as it was, then as a rotation has truncated it
            path.write_text(content)
            with pytest.raises(StoreUnavailable) as refused:
                await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=PATIENCE_S)
            assert KEY not in str(refused.value)

        path.write_text(f"{ROTATED_KEY}\n")
        monkeypatch.setattr("hotplate.stores.cosmos.requests.KEY_PAUSE_S", 60.0)
        with patch.object(SecretFile, "read", autospec=True, side_effect=SecretFile.read) as reading_file:
            first_reads, later_reads = [
                await asyncio.gather(
                    *(store.get_many(release_ref(FIRST), ["user:1"], timeout_s=PATIENCE_S) for _ in range(16)),
                    return_exceptions=True,
                )
                for _ in range(2)
            ]
        assert first_reads == later_reads == [[b"list"]] * 16
        assert reading_file.call_count == 1
        await write_release(store, SECOND, ROWS)
        assert len(await store.incarnations()) == 2
        await store.close()
    assert KEY not in caplog.text
    assert ROTATED_KEY not in caplog.text


async def test_stale_idle_connection_does_not_fail_a_read(account: Account, observer: ChargeCounter) -> None:
    address = await filled(account)
    async with through(int(account.emulator.endpoint.rpartition(":")[2].strip("/"))) as proxy:
        client = SignedClient(replace(address, endpoint=f"http://127.0.0.1:{proxy.port}"), observer)
        await asyncio.gather(*(client.read("c", NAME, PATIENCE_S) for _ in range(8)))
        reading = [asyncio.create_task(client.read("c", NAME, PATIENCE_S)) for _ in range(8)]
        await asyncio.sleep(0)  # they are sent, on connections that have ended
        proxy.reset()
        assert all(await asyncio.gather(*reading))
        assert set(observer.failures) == {"reset"}
        await client.close()


async def test_lost_server_is_probed_by_one_request_at_a_time(account: Account, observer: ChargeCounter) -> None:
    address = await filled(account)
    async with through(int(account.emulator.endpoint.rpartition(":")[2].strip("/"))) as proxy:
        client = SignedClient(replace(address, endpoint=f"http://127.0.0.1:{proxy.port}"), observer)

        async def failed_reads() -> int:
            """Make eight reads at a time, and return how many fail."""
            reads = (client.read("c", NAME, PATIENCE_S) for _ in range(8))
            results = await asyncio.gather(*reads, return_exceptions=True)
            return sum(isinstance(result, CosmosUnavailable) for result in results)

        assert await failed_reads() == 0
        before = proxy.accepted
        proxy.refusing = True
        proxy.reset()
        for _ in range(5):
            assert await failed_reads() == 8
        assert proxy.accepted <= before + 8 + 2 * 5  # all at once, then one for each pause and attempt
        proxy.refusing = False
        while await failed_reads():
            await asyncio.sleep(0.02)
        await client.close()


async def test_a_certificate_of_another_name_is_refused(tmp_path: Path, observer: ChargeCounter) -> None:
    certificate = tmp_path / "ca.pem"
    with emulated_account(certificate, "--host", "0.0.0.0") as account:
        port = account.emulator.endpoint.rpartition(":")[2].strip("/")
        named = replace(account.address("d"), endpoint=f"https://127.0.0.2:{port}")
        client = SignedClient(named, observer)
        with pytest.raises(CosmosUnavailable, match=r"certificate verify failed.*mismatch") as error:
            await client.read("c", "a", PATIENCE_S)
        assert error.value.kind == "connect"
        await client.close()


async def test_emulator_on_this_machine_is_reached_without_the_proxy(
    monkeypatch: pytest.MonkeyPatch, account: Account
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    store = open_url(account.url(f"d{secrets.token_hex(4)}"))
    await write_release(store, FIRST, ROWS)
    assert await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=PATIENCE_S) == [ROWS[0].value]
    await store.close()


async def test_reason_of_a_proxy_is_named_without_its_credentials(
    monkeypatch: pytest.MonkeyPatch, observer: ChargeCounter
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    async with listening(refuse) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://name:word@127.0.0.1:{port}")
        client = SignedClient(parse("cosmos+https://account.invalid:443/d", {}), observer)
        with pytest.raises(CosmosUnavailable, match=r"cannot be reached: the proxy opened no tunnel, .* 407") as error:
            await client.read("c", "a", PATIENCE_S)
        assert "word" not in str(error.value)
        await client.close()


def test_ca_file_without_certificates_is_refused(tmp_path: Path, observer: ChargeCounter) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(StoreMisused, match=r"ca\.pem, which should certify cosmos\+https://h:1/d"):
        SignedClient(parse(f"cosmos+https://h:1/d?ca={tmp_path}/ca.pem", {}), observer)


@pytest.mark.parametrize("ahead_s", [-1200, 1200])
async def test_wrong_clock_is_named_as_the_cause(account: Account, ahead_s: float) -> None:
    client = SignedClient(account.address("d"), clock=lambda: time.time() + ahead_s)
    with pytest.raises(CosmosUnavailable, match=r"does not accept the time .* correct the clock .*server's clock"):
        await client.read("c", NAME, PATIENCE_S)
    await client.close()
