"""How fast to write so that readers do not suffer: the latency of one's own batches tells how busy the server is."""

from collections.abc import Callable

FLOOR = 1 / 16
"""The share of its time that a writer keeps, however slow the server: a publish that crawls still ends."""

GROWN = 2.0
SLACK_S = 0.002
"""Latency has grown when it is more than GROWN times what is usual, and the slack, which is noise of schedulers."""

RECOVERY = 1.25
ADAPT_S = 30.0
"""How long it takes until a latency that stays is the usual one: a slow network is no reason to crawl for ever."""


LEAST_REST_S = 0.002
"""Shorter rests are saved up: event loops sleep by the millisecond, or not at all."""


class Pace:
    """Decides how long to rest after each batch; pure, on an injected clock (seconds), and lives as long as a writer.

    The share of time that is spent in batches is halved by each batch that took longer than is usual for its size and
    grows again, by a quarter, with each that did not.
    """

    def __init__(self, clock: Callable[[], float], *, most: float = 1.0) -> None:
        """Take the clock, and the share of time that may be spent at *most*, between FLOOR and 1."""
        self.share = most
        self._most = most
        self._clock = clock
        self._seen_at = clock()
        self._usual = dict[int, float]()
        self._owed_s = 0.0

    def rest_s(self, latency_s: float, size: int) -> float:
        """Learn that a batch of *size* (bytes, or whatever grows with the work) took *latency_s*; return the rest."""
        now = self._clock()
        elapsed_s, self._seen_at = now - self._seen_at, now
        magnitude = size.bit_length()  # batches are only held against others of their own size
        usual = self._usual.setdefault(magnitude, latency_s)
        if latency_s > GROWN * usual + SLACK_S:
            self.share = max(FLOOR, self.share / 2)
        else:
            self.share = min(self._most, self.share * RECOVERY)
        if latency_s < usual:
            self._usual[magnitude] = latency_s
        else:
            self._usual[magnitude] = usual + (latency_s - usual) * min(1.0, elapsed_s / ADAPT_S)
        self._owed_s += latency_s * (1 / self.share - 1)
        if self._owed_s < LEAST_REST_S:
            return 0.0
        rest_s, self._owed_s = self._owed_s, 0.0
        return rest_s
