"""A small HTTP server in threads, for peers that a test makes up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Returns the status and body of an answer to a path with headers and a body.
Respond = Callable[[str, Message, bytes], tuple[int, bytes]]


@contextmanager
def http_server(respond: Respond, media: str = "application/json") -> Iterator[str]:
    """Answer requests on any free port of loopback until the block ends; yield the origin."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = respond(self.path, self.headers, asked)
            self.send_response(status)
            self.send_header("Content-Type", media)
            self.send_header("Content-Length", str(len(body)))
            with suppress(ConnectionError):  # of a client that has gone
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 -- the library's name for it

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
