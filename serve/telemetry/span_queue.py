"""Spans on their way out of a worker: a bounded queue, and the thread that sends what is in it.

The loop adds to the queue and never waits: what finds no room is dropped and counted. Where the collector is away, the
thread waits for it, the queue fills up, and the service goes on.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event, Thread
from typing import Protocol

from hotplate.serve.metrics import SPANS_DROPPED, SPANS_EXPORTED, SPANS_FAILED
from hotplate.serve.telemetry.settings import TelemetrySettings
from hotplate.serve.telemetry.spans import Span

log = logging.getLogger(__name__)


class Send(Protocol):
    """Sends spans to a collector, as `hotplate.serve.telemetry.sdk.exporters.SpanSender` does."""

    def send(self, spans: Sequence[Span]) -> bool:
        """Send them, and wait until that is done; whether it was."""
        ...

    def close(self) -> None:
        """Give up what is being sent."""
        ...


class SpanQueue:
    """Lives as long as its worker; made after the fork, as it has a thread."""

    def __init__(
        self, sender: Send, count: Callable[[str, int], None], *, size: int, batch_size: int, delay_s: float
    ) -> None:
        """Take what sends, and what counts spans by what became of them, one of `hotplate.serve.metrics.SPANS`."""
        self._sender = sender
        self._count = count
        self._size = size
        self._batch_size = batch_size
        self._delay_s = delay_s
        self._spans = deque[Span]()
        self._awake = Event()
        self._closing = False
        self._failing = False
        self._thread = Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def add(self, span: Span) -> None:
        """Have a span sent, or drop it if there is no room."""
        waiting = len(self._spans)
        if waiting >= self._size or self._closing:
            self._count(SPANS_DROPPED, 1)
            return
        self._spans.append(span)
        if waiting + 1 == self._batch_size:
            self._awake.set()

    def close(self, timeout_s: float) -> None:
        """Send what is there, for *timeout_s* at most, and count what is left as dropped."""
        self._closing = True
        self._awake.set()
        self._thread.join(timeout_s)
        self._sender.close()
        if left := len(self._take(self._size)):
            self._count(SPANS_DROPPED, left)

    def _run(self) -> None:
        while not self._closing:
            self._awake.wait(self._delay_s)
            self._awake.clear()
            while batch := self._take(self._batch_size):
                self._send(batch)

    def _take(self, most: int) -> list[Span]:
        """Take so many spans out of the queue, or all; two threads may do so at the end."""
        taken = list[Span]()
        with suppress(IndexError):
            while len(taken) < most:
                taken.append(self._spans.popleft())
        return taken

    def _send(self, batch: Sequence[Span]) -> None:
        try:
            sent = self._sender.send(batch)
        except Exception:
            log.exception("spans cannot be sent")
            sent = False
        self._count(SPANS_EXPORTED if sent else SPANS_FAILED, len(batch))
        if sent == self._failing:
            self._failing = not sent
            if sent:
                log.info("the collector takes traces again")
            else:
                log.warning("the collector does not take traces; the service goes on, and counts what is lost")


def open_span_queue(settings: TelemetrySettings | None, count: Callable[[str, int], None]) -> SpanQueue | None:
    """Return the queue of a worker; None if there are no traces."""
    if settings is None or not settings.traces:
        return None
    from hotplate.serve.telemetry.sdk.exporters import SpanSender  # noqa: PLC0415 -- an extra

    return SpanQueue(
        SpanSender(settings),
        count,
        size=settings.queue_size,
        batch_size=settings.batch_size,
        delay_s=settings.delay_s,
    )
