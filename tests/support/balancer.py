"""A load balancer as a client: it sends only to services that were ready when last probed."""

import http.client
import select
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from tests.support.service import status_of, until

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
        self.turns = Counter[int]()
        """How many requests each caller has begun."""

        self._threads = list[threading.Thread]()
        self._path = path
        self._headers = headers
        self._outcome = outcome

    def start(self, callers: int) -> None:
        self._threads = [threading.Thread(target=self.probe)]
        self._threads += [threading.Thread(target=self.send, args=(caller,)) for caller in range(callers)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send no more, and wait until all requests were answered."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def probe(self) -> None:
        while not self.over.wait(PROBE_S):
            self.ready = [port for port in self.ports if status_of(port, "/readyz") == 200]

    def until_only(self, *ports: int) -> None:
        """Wait until the services on *ports* are those that are ready, and no caller sends to another one."""
        until(lambda: self.ready == list(ports), f"those on {ports} are not the ones that are ready")
        begun = self.turns.copy()
        until(lambda: all(self.turns[caller] > turn for caller, turn in begun.items()), "a caller gets no answer")

    def send(self, caller: int) -> None:
        turn = 0
        connections = dict[int, http.client.HTTPConnection]()
        while not self.over.wait(0.002):
            turn += 1
            self.turns[caller] = turn
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
    balancer.start(callers)
    try:
        yield balancer
    finally:
        balancer.stop()
