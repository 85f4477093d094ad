"""The queue of spans: bounded, counted, and never a reason to wait."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from hotplate.serve.telemetry.span_queue import SpanQueue
from hotplate.serve.telemetry.spans import Span


def a_span(number: int) -> Span:
    return Span(str(number), True, 1, 2, None, None, 0, 1, {}, False)


class Sender:
    """Takes what is sent once it may, and fails where it shall."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.begun = threading.Event()
        self.fails: Callable[[], bool] = lambda: False
        self.sent = list[str]()

    def send(self, spans: Sequence[Span]) -> bool:
        self.begun.set()
        self.may.wait(20)
        if self.fails():
            return False
        self.sent += [span.name for span in spans]
        return True

    def close(self) -> None:
        self.may.set()


@contextmanager
def queue(sender: Sender, **sizes: float) -> Iterator[tuple[SpanQueue, Counter[str]]]:
    counts = Counter[str]()
    made = SpanQueue(
        sender,
        lambda outcome, spans: counts.update({outcome: spans}),
        size=int(sizes.get("size", 100)),
        batch_size=int(sizes.get("batch_size", 10)),
        delay_s=sizes.get("delay_s", 60.0),
    )
    try:
        yield made, counts
    finally:
        made.close(20)


def test_what_finds_no_room_while_the_collector_is_slow_is_dropped_and_counted() -> None:
    sender = Sender()
    with queue(sender, size=5, batch_size=2) as (spans, counts):
        spans.add(a_span(0))
        spans.add(a_span(1))
        assert sender.begun.wait(20)  # those two are being sent, and the queue is empty
        for number in range(2, 10):
            spans.add(a_span(number))
        assert counts == {"dropped": 3}
        sender.may.set()
    assert sender.sent == [str(number) for number in range(7)]
    assert counts == {"dropped": 3, "exported": 7}


def test_what_waits_is_sent_when_it_is_closed_and_what_comes_later_is_dropped() -> None:
    sender = Sender()
    sender.may.set()
    with queue(sender) as (spans, counts):
        spans.add(a_span(0))
        spans.close(20)
        spans.add(a_span(1))
    assert sender.sent == ["0"]
    assert counts == {"exported": 1, "dropped": 1}


def test_closing_waits_for_a_collector_no_longer_than_it_may() -> None:
    sender = Sender()
    with queue(sender, batch_size=1) as (spans, counts):
        spans.add(a_span(0))
        assert sender.begun.wait(20)
        spans.add(a_span(1))
        spans.close(0.01)
        assert counts["dropped"] + len(sender.sent) >= 1


def test_a_collector_that_fails_costs_its_spans_and_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender()
    sender.may.set()
    sender.fails = lambda: True
    with queue(sender, delay_s=0.001) as (spans, counts):
        for number in range(4):
            spans.add(a_span(number))
    assert counts == {"failed": 4}
    assert [record.message.partition(";")[0] for record in caplog.records] == ["the collector does not take traces"]
