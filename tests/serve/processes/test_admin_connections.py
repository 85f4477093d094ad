"""Connections to the admin listener: many open ones do not lock operators out."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create
from tests.support.limited_service import WAIT_S, limited
from tests.support.redis_server import certify
from tests.support.service import UNVERIFIED, Service, running, status_of, until

MOST = 64


@contextmanager
def held(service: Service, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Open connections to the admin listener, send *sent* on each, and hold them."""
    with ExitStack() as stack:
        opened = list[socket.socket]()
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.admin_port), WAIT_S))
            opened.append(connection)
            connection.sendall(sent)
        yield opened


def status(service: Service) -> int:
    """Return the status of an operator's request over a new connection; 0 if it is cut."""
    return status_of(service.admin_port, "/metrics")


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HT", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_operator_connects_beside_the_maximum_of_connections(folder: Path, sent: bytes) -> None:
    with limited(folder, header_s=600) as service, held(service, MOST, sent):
        # The first may come while all that was sent is being answered.
        until(lambda: {status(service) for _ in range(5)} == {200}, "no operator gets in")


def test_longest_idle_connection_is_closed_first(folder: Path) -> None:
    with limited(folder, header_s=600) as service, held(service, MOST + 16) as opened:
        for connection in opened[:16]:
            assert connection.recv(1) == b""
        opened[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            opened[-1].recv(1)


def test_unfinished_handshakes_do_not_block_operators(folder: Path, tmp_path: Path) -> None:
    certify(tmp_path)
    key = create(tmp_path / "keys.json", "operator", ["admin"]).key
    options = ("--admin-host", "0.0.0.0", "--keys", str(tmp_path / "keys.json"))
    tls = ("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    with running(folder, *options, *tls) as service, held(service, MOST):
        for _ in range(3):
            raw = socket.create_connection(("127.0.0.1", service.admin_port), WAIT_S)
            with UNVERIFIED.wrap_socket(raw) as connection:
                connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n\r\n".encode())
                assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
