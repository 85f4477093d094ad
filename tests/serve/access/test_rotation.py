"""Keys, certificates and releases that change over and over under load, without one request that fails."""

import asyncio
import http.client
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from hotplate.serve.access.keys import create, revoke
from tests.support.command import hotplate
from tests.support.issuer import AUDIENCE, running_issuer
from tests.support.leaks import files_in, leaked
from tests.support.redis_server import certify
from tests.support.redis_server import running as redis_running
from tests.support.service import Service, a_list, publish_to, serving
from tests.support.soak import scaled

USER = "/v1/recommendations/42"
LISTS = {"user:42": a_list("a", "b")}
PASSWORD = "s3cret/of+the-store"
CALLERS = 4


class Callers:
    """Clients of one service, all with one key, that open a new connection now and then."""

    def __init__(self, port: int, key: str) -> None:
        self.key = key
        self.answered = 0
        self.failures = list[str]()
        self.refusals = list[str]()
        """What was answered to keys and tokens that are no good."""
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def status(self, key: str) -> int:
        """Request a list over a new connection with a key or a token."""
        connection = self.connect()
        try:
            connection.request("GET", USER, headers={"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            if response.status != 200:
                self.refusals.append(f"{response.headers}{response.read().decode()}")
            return response.status
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self._port, timeout=60, context=self._context)

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
def test_keys_certificates_and_releases_change_under_load_without_one_failed_request_and_leave_no_secret(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    store, keys, left, rounds = tmp_path / "store", tmp_path / "keys.json", tmp_path / "left", scaled(12)
    for folder in ("redis", "left", "pair-0", "pair-1"):
        (tmp_path / folder).mkdir()
    for number in range(2):
        certify(tmp_path / f"pair-{number}")
    shown = [ssl.PEM_cert_to_DER_cert((tmp_path / f"pair-{n}" / "server.pem").read_text()) for n in range(2)]
    (tmp_path / "live").symlink_to("pair-0")
    secrets = {"the password of the store": PASSWORD}
    secrets |= {f"a TLS key {n}": key_lines(tmp_path / f"pair-{n}" / "server.key") for n in range(2)}
    key = secrets["the first key"] = create(keys, "web", ["read"]).key
    options = ["--keys", str(keys), "--workers", "2", "--access-log", "0.01", "--slow-request-ms", "100"]
    options += ["--tls-cert", str(tmp_path / "live" / "server.pem"), "--tls-key", str(tmp_path / "live" / "server.key")]
    with redis_running(tmp_path / "redis", password=PASSWORD) as redis, running_issuer() as issuer:
        url = redis.url(user=f":{quote(PASSWORD, safe='')}@")
        for each in (url, f"file://{store}"):
            asyncio.run(publish_to(each, LISTS))
        options += ["--oidc-issuer", issuer.url, "--oidc-audience", AUDIENCE, "--admin-store", url]
        with serving(left, "--store", url, "--store", f"file://{store}", *options) as service:
            callers = Callers(service.port, key)
            try:
                for number in range(1, rounds + 1):
                    new = secrets[f"key {number}"] = create(keys, "web", []).key
                    token = secrets[f"token {number}"] = issuer.token()
                    expired = secrets[f"expired token {number}"] = issuer.token(exp=1)
                    (tmp_path / "next").symlink_to(f"pair-{number % 2}")
                    (tmp_path / "next").rename(tmp_path / "live")
                    for each in (url, f"file://{store}"):
                        asyncio.run(publish_to(each, LISTS))
                    until_all(callers, new, 200)
                    assert [callers.status(each) for each in (token, expired)] == [200, 401]
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
            warnings = [line for line in service.log.read_text().splitlines() if '"level":"warning"' in line]
            assert all('"message":"slow request"' in line for line in warnings), warnings
            said = [answer.encode() for answer in callers.refusals]
            redis.kill()
            wait_until(lambda: service.admin("/readyz").json["status"] == "degraded")
            said += said_to_operators(service, url, key, left / "report")
    assert callers.answered > rounds * 20
    assert (left / "report.html").exists()
    everything = [*said, *files_in(tmp_path)]
    assert leaked({"no secret": "127.0.0.1"}, everything) == ["no secret"]
    assert leaked(secrets, everything) == []
    record_property("rotations", rounds)
    record_property("requests", callers.answered)


def said_to_operators(service: Service, url: str, key: str, report: Path) -> list[bytes]:
    """Return what commands and the admin listener say of a store that is away, and of a service that takes keys."""
    options = ("--path", "/livez", "--rate", "50", "--duration", "1s", "--warmup", "0s", "--store", url)
    commands = (
        ("store", "doctor", "--store", url),
        ("releases", "list", "--store", url),
        ("bench", "http", service.admin_url, *options, "--header", f"X-API-Key: {key}", "--out", report),
    )
    done = [hotplate(*command) for command in commands]
    answers = [service.admin(path) for path in ("/metrics", "/readyz", "/v1/releases")]
    answers.append(service.admin("/v1/releases/rollback", "POST"))
    return [*(f"{each.stdout}{each.stderr}".encode() for each in done), *(answer.body for answer in answers)]


def key_lines(path: Path) -> str:
    """Return the first line of a private key that is the key's."""
    return path.read_text().splitlines()[1]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
