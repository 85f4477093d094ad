"""What one run asks of a service: where, what, how often and for how long."""

import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from bench.errors import BenchMisused
from bench.loadgen.requests import Paths, Requests, check_text
from bench.loadgen.schedule import Arrivals, constant

Check = Callable[[int, bytes], str | None]
"""Judges an answer by its status and body: None when it is good, else the kind of error to count it as."""


def status_is_good(status: int, body: bytes) -> str | None:
    """Call every status from 400 on an error."""
    del body
    return "status" if status >= 400 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run to be made; may be run any number of times.

    What: `paths` in turn, or any other `requests`. When: a constant `rate` in requests/s for `duration_s`, or any other
    `arrivals`; without either the loop is closed: each connection sends its next request when the last is answered, or
    `think_s` later, give or take `think_spread` of that. A request out of its `timeout_s` is given up, counted from
    when it was due; at most `backlog` due requests wait for one of the `connections`, and further ones are dropped.
    `check` judges every answer, instead of its status alone; an exception from it ends the run. `observe` names string
    fields of a compact JSON body whose values are counted. Of each `sample_every` answers one is kept, to be looked at
    afterwards (0: none). `tally` names a header of answers whose numbers are added up. Over https the server's
    certificate must be good, by the system's authorities or those in the file `ca`. `spin` keeps the pace to
    microseconds on a core of its own.
    """

    url: str
    paths: Sequence[str] = ()
    requests: Requests | None = None
    rate: float | None = None
    arrivals: Arrivals | None = None
    duration_s: float
    think_s: float = 0.0
    think_spread: float = 0.0
    connections: int = 64
    headers: Mapping[str, str] = field(default_factory=dict)
    spin: bool = False
    timeout_s: float = 5.0
    backlog: int = 10_000
    check: Check = status_is_good
    observe: Sequence[str] = ()
    sample_every: int = 0
    tally: str = ""
    ca: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be run, with a sentence for each."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise BenchMisused(f"The target must look like http://HOST:PORT or https://HOST:PORT, not {self.url!r}.")
        if self.requests is None:
            Paths(self.paths)
        for name, value in self.headers.items():
            check_text(name)
            check_text(value)
        for name in ("rate", "duration_s", "connections", "timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BenchMisused(f"{name} must be above zero, and is {value}.")

    @property
    def host(self) -> str:
        """Where to connect to."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """Where to connect to; 80, or 443 for https, unless told."""
        return urlsplit(self.url).port or (443 if self.url.startswith("https:") else 80)

    def tls(self) -> ssl.SSLContext | None:
        """Make what a connection is encrypted with; None for plain http."""
        return ssl.create_default_context(cafile=self.ca) if self.url.startswith("https:") else None

    @property
    def plan(self) -> Arrivals | None:
        """When requests are due; None for a closed loop."""
        if self.arrivals is not None or self.rate is None:
            return self.arrivals
        return constant(self.rate, self.duration_s)

    @property
    def asked(self) -> Requests:
        """What is asked for."""
        return self.requests or Paths(self.paths)

    def share(self, part: int, parts: int) -> "Load":
        """Give the load of one of *parts* processes; together they make the same run."""
        plan = self.plan
        connections = self.connections // parts + (part < self.connections % parts)
        if connections == 0:
            raise BenchMisused(f"{parts} processes need a connection each, and there are {self.connections} in all")
        return replace(
            self,
            requests=self.asked.share(part),
            rate=None,
            arrivals=plan and plan.share(part, parts),
            connections=connections,
            backlog=max(1, self.backlog // parts),
        )
