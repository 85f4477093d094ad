"""What became of the requests of one run, written down at the cost of a few appends each and folded afterwards."""

import itertools
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# How many of the newest latencies the percentiles of a progress display are of.
LIVE = 2_000


@dataclass(frozen=True, slots=True)
class Second:
    """What happened in one second of a run; the latencies are those of the responses that came in it."""

    due: int
    sent: int
    failed: int
    dropped: int
    latencies_s: NDArray[np.float32]


class ResponseSample(NamedTuple):
    """A request and its response, kept to be checked afterwards."""

    request: bytes
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The progress of a run: counts so far, and the newest latencies and lags in microseconds."""

    elapsed_s: float
    due: int
    sent: int
    ok: int
    failed: int
    dropped: int
    in_flight: int
    waiting: int
    p50_us: float
    p99_us: float
    lag_p99_us: float


class Recorder:
    """Counts and times of one run; lives as long as its generator. Times are 4-byte floats: 8 bytes a request."""

    def __init__(self, observe: Sequence[str] = (), sample_every: int = 0, tally: str = "") -> None:
        self._fields = {name: re.compile(rb'"%b":"([^"]*)"' % re.escape(name).encode()) for name in observe}
        self._number = re.compile(rb"\r\n%b: *([0-9]+(?:\.[0-9]+)?)\r\n" % re.escape(tally).encode(), re.IGNORECASE)
        self._sample_every = sample_every
        self._until_sample = sample_every
        self._latencies_s = array("f")
        self._lags_s = array("f")
        self._seen: dict[str, Counter[bytes]] = {name: Counter() for name in observe}
        self._marks = [(0, 0, 0, 0, 0)]
        self.samples = list[ResponseSample]()
        self.errors: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.tallied: dict[int, float] = {}
        self.due = self.sent = self.dropped = 0
        self.opened = self.refused = self.unsolicited = 0

    def late(self, lag_s: float) -> None:
        """Note that the generator came to a due request *lag_s* after it was due."""
        self._lags_s.append(lag_s)

    def seen(self, request: bytes, status: int, body: bytes) -> None:
        """Note a response, good or not."""
        self.statuses[status] += 1
        for name, pattern in self._fields.items():
            if request.startswith(b"POST"):  # one for each list of a batch
                _, *pieces = body.split(b'"%b":"' % name.encode())
                self._seen[name].update([piece[: piece.find(b'"')] for piece in pieces] or [b""])
                continue
            found = pattern.search(body)
            self._seen[name][found[1] if found else b""] += 1
        if self._sample_every:
            self._until_sample -= 1
            if not self._until_sample:
                self._until_sample = self._sample_every
                self.samples.append(ResponseSample(request, status, body))

    def tally(self, status: int, head: bytes) -> None:
        """Add up the number in a response's header, if there is one, by status."""
        if found := self._number.search(head):
            self.tallied[status] = self.tallied.get(status, 0.0) + float(found[1])

    def good(self, latency_s: float) -> None:
        """Note the latency of a good response."""
        self._latencies_s.append(latency_s)

    def mark(self) -> None:
        """Note that a second is over."""
        counts = self.due, self.sent, self.errors.total(), self.dropped
        self._marks.append((*counts, len(self._latencies_s)))

    @property
    def values(self) -> Mapping[str, Mapping[str, int]]:
        """How often each value of the observed fields was seen; "" stands for a field that was not there."""
        return {
            name: {value.decode(errors="replace"): count for value, count in counts.items()}
            for name, counts in self._seen.items()
        }

    def seconds(self) -> tuple[Second, ...]:
        """Return the run second by second; responses that came after the last request belong to the last second."""
        if len(self._marks) > 1 and self._marks[-1][0] == self.due:
            self._marks.pop()
        self.mark()
        latencies_s = np.array(self._latencies_s, dtype=np.float32)
        seconds = list[Second]()
        for before, after in itertools.pairwise(self._marks):
            due, sent, failed, dropped, _ = (late - early for early, late in zip(before, after, strict=True))
            within = slice(before[-1], after[-1])
            seconds.append(Second(due, sent, failed, dropped, latencies_s[within]))
        return tuple(seconds)

    @property
    def lags_s(self) -> NDArray[np.float32]:
        """How late the generator was for each due request."""
        return np.array(self._lags_s, dtype=np.float32)

    def progress(self, elapsed_s: float, in_flight: int, waiting: int) -> LoadProgress:
        """Sum up what a live view shows; cheap, because the run goes on."""
        p50_s, p99_s = _quantiles(self._latencies_s)
        return LoadProgress(
            elapsed_s=elapsed_s,
            due=self.due,
            sent=self.sent,
            ok=len(self._latencies_s),
            failed=self.errors.total(),
            dropped=self.dropped,
            in_flight=in_flight,
            waiting=waiting,
            p50_us=p50_s * 1e6,
            p99_us=p99_s * 1e6,
            lag_p99_us=_quantiles(self._lags_s)[1] * 1e6,
        )


def _quantiles(times: "array[float]") -> tuple[float, float]:
    newest = times[-LIVE:]
    if not newest:
        return 0.0, 0.0
    p50, p99 = np.percentile(np.array(newest), (50, 99))
    return float(p50), float(p99)
