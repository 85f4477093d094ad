"""The example of a proxy in the documentation works as it stands: HTTP/2 and TLS outside, kept connections inside."""

import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hotplate.bench.process import free_port
from tests.support.paths import ROOT
from tests.support.redis_server import certify
from tests.support.requests import AMBIGUOUS, METHOD_LINES
from tests.support.service import Service, a_list, ids, publish_lists, running, until

EXAMPLE = ROOT / "docs" / "examples" / "nginx.conf"

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ("nginx", "curl"))), reason="nginx or curl is not there")


@contextmanager
def proxied(folder: Path, *services: Service, settings: str = "") -> Iterator[int]:
    """Run nginx with the example, its port and files exchanged for ones of this test; yields the port.

    With several services it hashes by user. *settings* are added for all servers. Its log has a line of method, path
    and service for each request.
    """
    port = free_port()
    certify(folder)
    for source, named in (("server.pem", "tls.crt"), ("server.key", "tls.key")):
        (folder / source).rename(folder / named)
    example = EXAMPLE.read_text()
    limits = "max_fails=20 fail_timeout=1s"
    for stated, used in {
        f"server 127.0.0.1:8080 {limits};": " ".join(
            f"server 127.0.0.1:{service.port} {limits};" for service in services
        ),
        "# hash ": "hash " if len(services) > 1 else "# hash ",
        "listen 8443": f"listen 127.0.0.1:{port}",
        "/etc/hotplate": str(folder),
        "proxy_connect_timeout 250ms": "proxy_connect_timeout 60s",  # on a busy machine
        "proxy_read_timeout 2s": "proxy_read_timeout 60s",
    }.items():
        assert stated in example
        example = example.replace(stated, used)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/nginx.pid; daemon off; worker_processes 1; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ log_format services '$request_method $uri $upstream_addr';\n"
        f"access_log {folder}/access.log services; {temporary} {settings}\n{example}\n}}\n"
    )
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE)
    try:
        until(lambda: is_open(port), "nginx does not listen")
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=60)


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def curl(folder: Path, port: int, path: str, *options: str) -> tuple[str, int, bytes]:
    """Request by HTTP/2 if offered; return the version, the status and the body."""
    ran = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--http2", "--cacert", str(folder / "ca.pem"), *options),
            *("--write-out", "\n%{http_version} %{http_code}", f"https://127.0.0.1:{port}{path}"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    body, _, summary = ran.stdout.rpartition(b"\n")
    version, code = summary.decode().split()
    return version, int(code), body


async def test_example_proxy_serves_http2_and_keeps_upstream_connections_alive(tmp_path: Path) -> None:
    await publish_lists(tmp_path / "store", {"user:1": a_list("a", "b")})
    with running(tmp_path / "store") as service, proxied(tmp_path, service) as port:
        version, status, body = curl(tmp_path, port, "/v1/recommendations/1?n=1")
        assert (version, status) == ("2", 200)
        assert ids(json.loads(body)) == ["a"]
        batch = ("--data", '{"users": ["1", "2"]}', "--header", "content-type: application/json")
        version, status, body = curl(tmp_path, port, "/v1/recommendations", *batch)
        assert (version, status) == ("2", 200)
        assert [result["source"] for result in json.loads(body)["results"]] == ["personal", "popular"]
        assert curl(tmp_path, port, "/readyz")[1] == 200
        assert curl(tmp_path, port, "/metrics")[1] == 404, "what is for operators is not passed on"
        service.stop()
        assert curl(tmp_path, port, "/v1/popular")[1] == 502, "an error of a service that is away is the proxy's"


async def test_hashing_pins_a_user_to_one_service_and_spreads_batches(tmp_path: Path) -> None:
    store = tmp_path / "store"
    await publish_lists(store, {})
    with running(store) as first, running(store) as other, proxied(tmp_path, first, other) as port:
        for user in range(12):
            for n in (1, 2):
                assert curl(tmp_path, port, f"/v1/recommendations/{user}?n={n}")[1] == 200
            batch = ("--data", json.dumps({"users": [str(user)]}), "--header", "content-type: application/json")
            assert curl(tmp_path, port, "/v1/recommendations", *batch)[1] == 200
    lines = {tuple(line.split()) for line in (tmp_path / "access.log").read_text().splitlines()}
    requested = [(method, path) for method, path, _ in lines]
    assert len({service for method, _, service in lines if method == "GET"}) == 2
    assert {target: requested.count(target) for target in requested} == {
        ("POST", "/v1/recommendations"): 2,
        **{("GET", f"/v1/recommendations/{user}"): 1 for user in range(12)},
    }


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("settings", ["", "proxy_request_buffering off;"], ids=["buffered", "streamed"])
async def test_ambiguous_requests_get_no_answers_of_other_clients(tmp_path: Path, settings: str) -> None:
    await publish_lists(tmp_path / "store", {"user:1": a_list("a"), "user:2": a_list("b")})
    with running(tmp_path / "store") as service, proxied(tmp_path, service, settings=settings) as port:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))

        def send(*pieces: bytes) -> None:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
            ):
                client.settimeout(0.05)
                with suppress(OSError):
                    for piece in pieces:
                        client.sendall(piece)
                    while client.recv(65_536):
                        pass

        for line in METHOD_LINES:
            for headers, body in AMBIGUOUS:
                head = line + headers + b"\r\n\r\n"
                for pieces in ((head + body,), (head, body), (head[:-1], head[-1:] + body[:4], body[4:])):
                    send(*pieces)
                    _, status, answer = curl(tmp_path, port, "/v1/recommendations/1")
                    assert (status, json.loads(answer)["user"]) == (200, "1"), (head, body)
