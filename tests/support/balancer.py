"""A load balancer as a client: it sends only to services that were ready when last probed."""

import http.client
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tests.support.service import status_of

PROBE_S = 0.1
Headers = Callable[[], Mapping[str, str]]
# Returns the name under which a response is counted, from its status and body.
Outcome = Callable[[int, bytes], str]


def by_status(status: int, _: bytes) -> str:
    return str(status)


class Balancer:
    """Sends requests round robin, over kept connections, to local ports; made by `balanced`."""

    def __init__(self, *ports: int, path: str, headers: Headers = dict, outcome: Outcome = by_status) -> None:
        self.ports = list(ports)
        self.ready = list(ports)
        self.outcomes = Counter[str]()
        self.over = threading.Event()
        self._path = path
        self._headers = headers
        self._outcome = outcome

    def probe(self) -> None:
        while not self.over.wait(PROBE_S):
            self.ready = [port for port in self.ports if status_of(port, "/readyz") == 200]

    def send(self) -> None:
        turn = 0
        connections = dict[int, http.client.HTTPConnection]()
        while not self.over.wait(0.002):
            turn += 1
            ready = self.ready
            if not ready:
                self.outcomes["no service is ready"] += 1
                continue
            port = ready[turn % len(ready)]
            connection = connections.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=60))
            if _was_closed(connection):
                connection.close()  # the next line opens it again
            try:
                connection.request("GET", self._path, headers=dict(self._headers()))
                response = connection.getresponse()
                outcome = self._outcome(response.status, response.read())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                outcome = type(error).__name__
            self.outcomes[outcome] += 1
        for connection in connections.values():
            connection.close()


def _was_closed(connection: http.client.HTTPConnection) -> bool:
    """Whether the service closed a connection since its last answer, as one that stops does with those left idle."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


@contextmanager
def balanced(
    *ports: int, path: str, callers: int = 3, headers: Headers = dict, outcome: Outcome = by_status
) -> Iterator[Balancer]:
    """Load the services on these ports by this many callers, which wait 2 ms after each answer."""
    balancer = Balancer(*ports, path=path, headers=headers, outcome=outcome)
    threads = [threading.Thread(target=balancer.probe)]
    threads += [threading.Thread(target=balancer.send) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield balancer
    finally:
        balancer.over.set()
        for thread in threads:
            thread.join()
