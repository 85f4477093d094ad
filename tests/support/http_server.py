"""A small HTTP server in threads, for peers that a test makes up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Returns the status and body of an answer to a path with headers and a body.
Respond = Callable[[str, Message, bytes], tuple[int, bytes]]


@contextmanager
def http_server(respond: Respond, media: str = "application/json", **headers: str) -> Iterator[str]:
    """Answer requests on any free port of loopback, also with *headers*, until the block ends; yield the origin."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = respond(self.path, self.headers, asked)
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            with suppress(ConnectionError):  # of a client that has gone
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_PUT = do_GET  # noqa: N815 -- the library's names for it

        def log_message(self, format: str, *args: object) -> None:
            pass

    with handled_by(Handler) as origin:
        yield origin


@contextmanager
def handled_by(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Let *handler* answer requests on any free port of loopback until the block ends; yield the origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
