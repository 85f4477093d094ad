"""Stands between a client and a service, and does to each request what a test says."""

import http.client
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The faults of a request, if it is not answered with bytes.
RELAY = "it is passed on"
HELD = "it is passed on once `released` is set"
SILENT = "it is never answered"
TRICKLED_HEAD = "headers come byte by byte, without an end"
TRICKLED_BODY = "the body comes byte by byte, without an end"
DROPPED = "the connection is closed"
RESET = "the connection is reset"
HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n"
# The first bytes of an endless answer, and the bytes repeated after them.
TRICKLES = {TRICKLED_HEAD: (HEADERS + b"X-Long: ", b"a"), TRICKLED_BODY: (HEADERS + b"\r\n{", b" ")}


class FaultyProxy:
    """Relays to a port of this machine, unless *faults* holds what to do to the next requests, or *fault* to all."""

    def __init__(self, port: int, listener: socket.socket) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.fault: str | bytes = RELAY
        self.faults = deque[str | bytes]()
        self.requests = list[str]()
        """The first lines of the requests that came."""

        self.connections = 0
        self.released = threading.Event()
        self.over = threading.Event()
        self._listener = listener

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, suppress(OSError, ValueError, http.client.HTTPException):
            while line := stream.readline():
                headers = http.client.parse_headers(stream)
                body = stream.read(int(headers.get("Content-Length", 0)))
                self.requests.append(line.decode().strip())
                fault = self.faults.popleft() if self.faults else self.fault
                if fault == HELD:
                    self.released.wait()
                if isinstance(fault, bytes):
                    connection.sendall(fault)
                elif fault in {RELAY, HELD}:
                    connection.sendall(self._relayed(line, headers, body))
                else:
                    self._spoil(connection, fault)
                    return

    def _spoil(self, connection: socket.socket, fault: str) -> None:
        if fault == RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == SILENT:
            self.over.wait()
        elif fault in TRICKLES:
            first, remaining = TRICKLES[fault]
            connection.sendall(first)
            while not self.over.wait(0.01):
                connection.sendall(remaining)

    def _relayed(self, line: bytes, headers: http.client.HTTPMessage, body: bytes) -> bytes:
        method, path, _ = line.decode().split()
        upstream = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            upstream.request(method, path, body or None, dict(headers.items()))
            response = upstream.getresponse()
            return answer(response.status, response.read(), **dict(response.getheaders()))
        finally:
            upstream.close()


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Return an answer as it goes over a socket; an underscore in a header's name is a hyphen."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers = {name: value for name, value in headers.items() if name not in {"Transfer-Encoding", "Content-Length"}}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status} X\r\n{''.join(lines)}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def faulty_proxy(port: int) -> Iterator[FaultyProxy]:
    """Run a proxy before a port, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = FaultyProxy(port, listener)
        thread = threading.Thread(target=proxy.accept, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            proxy.over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)
