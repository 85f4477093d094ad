"""Every limit of a connection, reached with a raw socket; the memory of the worker stays under a bound in each."""

import gzip
import json
import resource
import select
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from hotplate.serve.connections.listeners import within_memory
from hotplate.serve.settings import Limits
from tests.support.limited_service import MB, WAIT_S, allow_files, counted, limited, memory_mb, shed, sockets, worker_of
from tests.support.service import Answer, Service, a_list, published, running, status_of, until
from tests.support.soak import in_soak

# What a worker may have in any of these tests: it starts with about 60 MB, and holds little for anybody.
MOST_MB = 200.0
USERS = 200
GET = b"GET /v1/recommendations/1 HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/recommendations HTTP/1.1\r\nHost: x\r\n"
# A batch with an answer of more than a MB.
BATCH = json.dumps({"users": [str(n % USERS) for n in range(1000)], "n": 20}).encode()
# Raised to a client that still sends when the service closes its connection.
CLOSED = (ssl.SSLEOFError, ConnectionError)
SHORT: Any = {"header_s": 0.5, "body_s": 0.5, "write_s": 0.5}
# A client gets as long to send the rest of a refused body as to read an answer.
LINGERING = "import hotplate.serve.connections.connection as connection; connection.LINGER_S = 10.0"
IN_FLIGHT: Any = {"bytes_in_flight": 16 * MB}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "store"
    ids = [f"a long id of an item, number {n}" for n in range(20)]
    published(folder, {f"user:{n}": a_list(*ids) for n in range(USERS)})
    return folder


@pytest.fixture(scope="module")
def service(store: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service with the usual times, or longer ones, for tests that may be late themselves."""
    with limited(store, **IN_FLIGHT, tls=getattr(request, "param", False), before=LINGERING) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(store: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service with short times, but for idle connections: a late test would lose its own."""
    with limited(store, **IN_FLIGHT, **SHORT, tls=getattr(request, "param", False)) as running:
        yield running


def over_both(fixture: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(fixture, [False, True], indirect=True, ids=["plain", "TLS"])


@pytest.fixture(autouse=True)
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold every test to the bound."""
    shared = {"service", "impatient"}.intersection(request.fixturenames)
    services: list[Service] = [request.getfixturevalue(name) for name in shared]
    yield
    assert all(memory_mb(service) < MOST_MB for service in services)


def parse_answer(received: bytes) -> Answer:
    """Read one whole answer as it came over a socket."""
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return Answer(int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body)


def post(body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in (f"Content-Length: {len(body)}", *headers))
    return POST + lines.encode() + b"\r\n" + body


def answers(connection: socket.socket, sent: bytes = GET) -> bool:
    """Send a request; return whether it is answered with 200."""
    connection.sendall(sent)
    return connection.recv(65_536).startswith(b"HTTP/1.1 200 ")


def last_answer(connection: socket.socket) -> Answer:
    """Read until the service closes; return the answer that it gave before."""
    received = b""
    while chunk := connection.recv(65_536):
        received += chunk
    answer = parse_answer(received)
    assert answer.headers["connection"] == "close"
    return answer


def said(service: Service, *parts: bytes) -> Answer:
    """Send bytes on a new connection; return the answer after which the service closes it."""
    with sockets(service) as (connection,):
        for part in parts:
            connection.sendall(part)
        answer = last_answer(connection)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    assert answer.json["status"] == answer.status
    return answer


def test_slow_header_is_answered_408(impatient: Service) -> None:
    before = shed(impatient, "slow_header")
    assert said(impatient, b"GET /v1/popular HTTP/1.1\r\nHos").json["type"] == "urn:hotplate:problem:slow-header"
    # The second header of a connection, in pieces that are in time themselves.
    with sockets(impatient) as (connection,):
        assert answers(connection)
        with suppress(OSError):
            for n in range(200):
                connection.sendall(b"GET /v1/popular HTTP/1.1\r\nX: " if n == 0 else b"x")
                connection.settimeout(0.05)
                with suppress(TimeoutError):
                    assert b" 408 " in connection.recv(65_536)
                    break
    assert shed(impatient, "slow_header") == before + 2


def test_too_large_header_is_answered_431_in_any_pieces(service: Service) -> None:
    large = b"GET /v1/popular HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(20))
    assert said(service, large + b"\r\n").status == 431
    assert said(service, *(large[at : at + 3000] for at in range(0, 18_000, 3000))).status == 431


def test_missing_body_is_answered_408_and_delays_no_other(impatient: Service) -> None:
    before = shed(impatient, "slow_body")
    with sockets(impatient, 20) as slow:
        for connection in slow:
            connection.sendall(POST + b'Content-Length: 100\r\n\r\n{"users"')
        assert impatient.post("/v1/recommendations", b'{"users": ["1"]}').status == 200
        for connection in slow:
            assert last_answer(connection).status == 408
    assert shed(impatient, "slow_body") == before + 20


@over_both("service")
def test_slow_http_1_0_client_gets_all_of_a_large_answer(service: Service) -> None:
    head = b"POST /v1/recommendations HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BATCH)
    with sockets(service, receive_bytes=16_384) as (connection,):
        connection.sendall(head + BATCH)
        received = b""
        while chunk := connection.recv(40_000):
            received += chunk
            time.sleep(0.05)
    assert len(parse_answer(received).json["results"]) == 1000


def test_idle_timeout_is_an_option_and_connections_are_closed_silently(store: Path) -> None:
    with running(store, "--idle-timeout", "1") as service, sockets(service) as (client,):
        operator = socket.create_connection(("127.0.0.1", service.admin_port), timeout=WAIT_S)
        with operator:
            assert client.recv(1) == operator.recv(1) == b""


def open_sockets(worker: int) -> int:
    """Return how many sockets a process has open; its metrics tell its connections only once a second."""
    count = 0
    for descriptor in list(Path(f"/proc/{worker}/fd").iterdir()):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            count += str(descriptor.readlink()).startswith("socket:")
    return count


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_unread_answers_do_not_keep_an_idle_connection_open(store: Path, *, tls: bool) -> None:
    with limited(store, **IN_FLIGHT, write_s=0.5, idle_s=1.0, tls=tls) as service:
        worker = worker_of(service)
        before = open_sockets(worker)

        def is_cut() -> bool:
            """Open connections with unread answers; those of a late test may be closed as idle before they have any."""
            with suppress(*CLOSED):
                never, *some = clients.enter_context(sockets(service, 9, receive_bytes=4096))
                never.sendall(post(BATCH))
                for count, connection in enumerate(some, 4):
                    for _ in range(10 * count):
                        connection.sendall(GET)
            return shed(service, "slow_reader") > 0

        with ExitStack() as clients:
            until(is_cut, "no slow reader is cut")
            until(lambda: open_sockets(worker) == before, "they are not closed")
        assert memory_mb(service) < MOST_MB


@over_both("impatient")
def test_clients_that_never_read_take_bounded_memory_and_delay_no_other(impatient: Service) -> None:
    before = shed(impatient, "slow_reader")

    def is_cut() -> bool:
        """Add a batch with an unread answer, because a busy worker may refuse all of the first ones."""
        (connection,) = clients.enter_context(sockets(impatient))
        with suppress(*CLOSED):
            connection.sendall(post(BATCH))
        return shed(impatient, "slow_reader") > before

    with ExitStack() as clients:
        for _ in range(100):
            (connection,) = clients.enter_context(sockets(impatient))
            connection.setblocking(False)
            with suppress(BlockingIOError, ssl.SSLWantWriteError, *CLOSED):
                connection.send(post(BATCH) * 20)
        for _ in range(30):
            assert impatient.get("/readyz").status == impatient.get("/v1/recommendations/1").status == 200
            assert memory_mb(impatient) < MOST_MB
        until(is_cut, "they are not cut")
        batch = b'{"users": ["1"]}'
        until(lambda: impatient.post("/v1/recommendations", batch).status == 200, "no batch is answered")


def test_memory_of_unread_answers_is_returned(store: Path) -> None:
    with limited(store, write_s=2.0) as service, ExitStack() as readers:
        before_mb = memory_mb(service)
        until(lambda: service.post("/v1/recommendations", BATCH).status == 200)

        def hold() -> bool:
            """Add batches with an unread answer; the first ones may be refused."""
            for connection in readers.enter_context(sockets(service, 10, receive_bytes=4096)):
                connection.sendall(post(BATCH))
            return memory_mb(service) > before_mb + 60

        until(hold, "nothing is held")
        until(lambda: memory_mb(service) < before_mb + 30, "the memory is kept")


def test_memory_held_for_clients_is_at_most_a_quarter() -> None:
    for workers, room, share in ((1, 512 * MB, 128 * MB), (4, 2048 * MB, 128 * MB), (1, float("inf"), 256 * MB)):
        assert within_memory(Limits(), workers, room).bytes_in_flight == share


def test_bodies_beyond_the_memory_bound_are_refused_with_503(store: Path) -> None:
    with limited(store, bytes_in_flight=2 * MB) as service, sockets(service, 4) as senders:
        for connection in senders:
            connection.sendall(POST + b"Content-Length: 1000000\r\n\r\n" + b" " * 700_000)
        refused, _, _ = select.select(senders, [], [], WAIT_S)
        answer = last_answer(refused[0])
        assert answer.problem == (503, "overloaded")
        assert 1 <= int(answer.headers["retry-after"]) <= 4
        assert shed(service, "bytes") >= 1
        until(lambda: service.post("/v1/recommendations", b'{"users": ["1"]}').status == 200, "no room again")


def test_connections_beyond_the_limit_are_closed(store: Path) -> None:
    with limited(store, connections=20) as service, sockets(service, 20) as held:
        until(lambda: status_of(service.port, "/v1/popular") == 0, "none is refused")
        assert status_of(service.port, "/livez") == 0, "a probe has no place of its own"
        assert shed(service, "connections") >= 2
        assert answers(held[0])
        held[1].close()
        until(lambda: status_of(service.port, "/v1/popular") == 200, "a free place is not given away")


def test_admin_listener_has_worker_limits(impatient: Service) -> None:
    for sent, status in (
        (b"GET /livez HTTP/1.1\r\nHos", 408),
        (b"GET /livez HTTP/1.1\r\nX: " + b"y" * 20_000, 431),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked" + SMUGGLED, 400),
        (b"GET /livez HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ):
        with socket.create_connection(("127.0.0.1", impatient.admin_port), timeout=WAIT_S) as connection:
            connection.sendall(sent)
            assert last_answer(connection).status == status


@pytest.mark.parametrize(("count", "most_mb"), [(2_000, 120), in_soak(10_000, 200)])
def test_thousands_of_connections_are_served(store: Path, count: int, most_mb: float) -> None:
    if not allow_files(count + 500):
        pytest.skip(f"no process here may open {count + 500} files")
    with limited(store, connections=count + 1) as service, sockets(service, count) as held:
        until(lambda: service.get("/readyz").status == 200, "it is not ready")
        for connection in held:
            connection.sendall(GET)
        for connection in held:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        assert memory_mb(service) < most_mb


def test_connections_wait_while_descriptors_are_exhausted(store: Path) -> None:
    with limited(store) as service:
        worker = worker_of(service)
        fds = Path(f"/proc/{worker}/fd")
        _, most = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (len(list(fds.iterdir())) + 10, most))
        with sockets(service, 60) as held:
            assert answers(held[0])
            until(lambda: "connections wait to be accepted" in service.log.read_text(), "it is not in the log")
            for connection in held:
                connection.sendall(GET)
            for connection in held[:10]:
                connection.close()
            readable, _, _ = select.select(held[10:], [], [], WAIT_S)
            assert readable, "nothing is accepted any more"
            assert service.log.read_text().count("connections wait to be accepted") == 1
        until(lambda: service.get("/v1/popular").status == 200, "it does not recover")
        assert memory_mb(service) < MOST_MB


def test_compressed_body_is_refused_before_it_is_expanded(service: Service) -> None:
    bomb = gzip.compress(b"a" * (50 * MB))
    for coding in ("gzip", "deflate", "br", "x-unknown", "gzip, identity"):
        answer = said(service, post(bomb, f"Content-Encoding: {coding}"))
        assert answer.problem == (415, "encoded-body")


def test_disconnect_during_request_body_is_a_499_and_is_not_logged(service: Service) -> None:
    def hung_up() -> float:
        return counted(service, "hotplate_http_request_duration_seconds_count", code="499")

    before = hung_up()
    log = service.log.read_text()
    for half_closed in (True, False):
        with sockets(service) as (connection,):
            connection.sendall(POST + b'Content-Length: 100\r\n\r\n{"users"')
            if half_closed:
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
    until(lambda: hung_up() == before + 2, "it is not counted")
    assert service.log.read_text() == log


END = b"\r\n\r\n"
LINE = b"GET /v1/popular HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = END + b"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: x" + END
NOT_HTTP = [
    b"GARBAGE" + END,
    b"GET /v1/popular\r\nHost: x" + END,
    *(b"GET /v1/popular HTTP/%b\r\nHost: x" % version + END for version in (b"0.9", b"1.2", b"3", b"9.9")),
    *(b"GET /v1/recommendations/%b HTTP/1.1\r\nHost: x" % raw + END for raw in (b"\xff", "😀".encode())),
    LINE + b"Bad Header: y" + END,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 32,
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked" + SMUGGLED,
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5" + SMUGGLED,
    POST + b"Content-Length: 5\r\nContent-Length: 6" + SMUGGLED,
    POST + b"Content-Length: 5, 5" + SMUGGLED,
    POST + b"Content-Length: +5" + SMUGGLED,
    POST + b"Content-Length : 5" + SMUGGLED,
    POST + b"Content-Length:\r\n 5" + SMUGGLED,
    POST + b"X: a\r\n\tContent-Length: 5" + SMUGGLED,
    POST + b"Transfer-Encoding: xchunked" + SMUGGLED,
    POST + b"Transfer-Encoding: chunked, identity" + SMUGGLED,
    POST + b"Transfer-Encoding : chunked" + SMUGGLED,
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked" + SMUGGLED,
    POST + b"X: a\nTransfer-Encoding: chunked" + SMUGGLED,
    POST + b"X: a\rTransfer-Encoding: chunked" + SMUGGLED,
    POST + b"X: a\x00b" + SMUGGLED,
]


def test_malformed_and_ambiguous_requests_are_refused_and_closed(service: Service) -> None:
    for sent in NOT_HTTP:
        answer = said(service, sent)
        assert answer.problem == (400, "bad-request"), sent


def test_too_large_content_length_is_refused_before_the_body(service: Service) -> None:
    assert said(service, POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n").status == 400
    answer = said(service, POST + b"Content-Length: 99999999999\r\n\r\n")
    assert answer.problem == (413, "body-too-large")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    assert said(service, POST + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 17, b"0\r\n\r\n").status == 413


def test_client_that_sends_the_whole_body_first_sees_the_refusal(service: Service) -> None:
    body = b" " * (8 * MB)
    path = "/v1/recommendations"
    for _ in range(3):
        assert service.post(path, body).status == 413
        assert service.post(path, body, Content_Encoding="gzip").status == 415
        assert service.post(path, body, X_Request_Timeout_Ms="soon").status == 400
        assert service.post("/livez", body).status == 405


def test_expired_request_deadline_is_refused(service: Service) -> None:
    body = b'{"users": ["1"]}'
    for status, deadline in ((200, "60000"), (503, "0"), (400, "soon")):
        assert service.get("/v1/popular", X_Request_Timeout_Ms=deadline).status == status
        answer = service.post("/v1/recommendations", body, X_Request_Timeout_Ms=deadline)
        assert answer.status == status
    assert shed(service, "deadline") >= 2
