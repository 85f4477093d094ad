"""Keys, certificates and releases that change over and over under load, without one request that fails."""

import asyncio
import http.client
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.keys import create, revoke
from tests.support.redis_server import certify
from tests.support.service import a_list, publish_lists, running
from tests.support.soak import scaled

USER = "/v1/recommendations/42"
CALLERS = 4


class Callers:
    """Clients of one service, all with one key, that open a new connection now and then."""

    def __init__(self, port: int, key: str) -> None:
        self.key = key
        self.answered = 0
        self.failures = list[str]()
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def status(self, key: str) -> int:
        """Request a list over a new connection with a key."""
        connection = self.connect()
        try:
            connection.request("GET", USER, headers={"X-API-Key": key})
            return connection.getresponse().status
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=30, context=self._context)

    def certificate(self) -> bytes | None:
        """Return the certificate that a new connection is shown."""
        connection = self.connect()
        try:
            connection.connect()
            return connection.sock.getpeercert(binary_form=True)
        finally:
            connection.close()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        while not self._stopped.is_set():
            connection = self.connect()
            try:
                for _ in range(20):
                    connection.request("GET", USER, headers={"Authorization": f"Bearer {self.key}"})
                    response = connection.getresponse()
                    body = response.read()
                    if response.status != 200 or b'"source":"personal"' not in body:
                        self.failures.append(f"{response.status} {body!r}")
                    self.answered += 1
            except OSError as error:
                self.failures.append(repr(error))
            finally:
                connection.close()


def until_all(callers: Callers, key: str, status: int) -> None:
    """Wait until both workers answer *status* to a key: twenty times in a row."""
    deadline, seen = time.monotonic() + 60, 0
    while seen < 20:
        assert time.monotonic() < deadline
        seen = seen + 1 if callers.status(key) == status else 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_keys_certificates_and_releases_change_under_load_without_one_failed_request(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    store, keys, rounds = tmp_path / "store", tmp_path / "keys.json", scaled(60)
    for number in range(2):
        (tmp_path / f"pair-{number}").mkdir()
        certify(tmp_path / f"pair-{number}")
    shown = [ssl.PEM_cert_to_DER_cert((tmp_path / f"pair-{n}" / "server.pem").read_text()) for n in range(2)]
    (tmp_path / "live").symlink_to("pair-0")
    asyncio.run(publish_lists(store, {"user:42": a_list("a", "b")}))
    key = create(keys, "web", ["read"]).key
    pair = ("--tls-cert", str(tmp_path / "live" / "server.pem"), "--tls-key", str(tmp_path / "live" / "server.key"))
    with running(store, "--keys", str(keys), "--workers", "2", *pair) as service:
        callers = Callers(service.port, key)
        try:
            for number in range(1, rounds + 1):
                new = create(keys, "web", []).key
                (tmp_path / "next").symlink_to(f"pair-{number % 2}")
                (tmp_path / "next").rename(tmp_path / "live")
                asyncio.run(publish_lists(store, {"user:42": a_list("a", "b")}))
                until_all(callers, new, 200)
                old, callers.key = callers.key, new
                time.sleep(0.5)  # what is in flight has the old one
                revoke(keys, "web", "primary")
                until_all(callers, old, 401)
                deadline = time.monotonic() + 60
                while callers.certificate() != shown[number % 2]:
                    assert time.monotonic() < deadline
                assert callers.failures == []
        finally:
            callers.stop()
        log = service.log.read_text()
    assert callers.failures == []
    assert callers.answered > rounds * 20
    assert '"level":"warning"' not in log
    assert not [each for each in (key, callers.key) if each in log]
    record_property("rotations", rounds)
    record_property("requests", callers.answered)
