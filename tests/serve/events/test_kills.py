"""Workers killed under load: every event that was answered with 200 is in the segments."""

import asyncio
import os
import signal
import threading
import time
from itertools import count
from pathlib import Path

import pytest

from hotplate.stores.event_log import SegmentReader, segments
from tests.support.event_log import body, ids
from tests.support.service import Service, publish_lists, running
from tests.support.soak import scaled

CALLERS, EVENTS = 4, 5


def report(service: Service, caller: int, durable: set[str], over: threading.Event) -> None:
    """Report events until it is over; remember those that were answered."""
    for request in count():
        if over.is_set():
            return
        sent = [f"{caller}-{request}-{number}" for number in range(EVENTS)]
        try:
            answer = service.request("POST", "/v1/events", body(*sent), Content_Type="application/json")
        except OSError:  # the worker was killed, and nobody knows
            time.sleep(0.01)
            continue
        if answer.status == 200:
            durable.update(sent)


def killed_under_load(tmp_path: Path, kills: int) -> None:
    asyncio.run(publish_lists(tmp_path / "store", {}))
    over, durable = threading.Event(), [set[str]() for _ in range(CALLERS)]

    def wait_for_more() -> None:
        """Wait until more has been answered than before."""
        before, deadline = sum(map(len, durable)), time.monotonic() + 60
        while sum(map(len, durable)) < before + 10 * EVENTS:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with running(tmp_path / "store", "--events", str(tmp_path / "log")) as service:
        callers = [
            threading.Thread(target=report, args=(service, number, durable[number], over)) for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        try:
            for _ in range(kills):
                wait_for_more()
                for worker in service.workers():
                    os.kill(worker, signal.SIGKILL)
            wait_for_more()
        finally:
            over.set()
            for caller in callers:
                caller.join()
        assert service.stop() == 0
        assert service.log.read_text().count("was killed; its events are kept") == kills
    assert set().union(*durable) <= ids(tmp_path / "log")
    closed = segments(tmp_path / "log")
    assert len(closed) == len(list((tmp_path / "log").iterdir())) == kills + 1
    for path in closed:
        reader = SegmentReader(path.read_bytes())
        assert list(reader)
        assert (reader.damaged, reader.whole_bytes) == (0, path.stat().st_size)


def test_nothing_that_was_answered_is_lost_by_two_kills(tmp_path: Path) -> None:
    killed_under_load(tmp_path, 2)


@pytest.mark.soak
def test_nothing_that_was_answered_is_lost_by_ten_kills(tmp_path: Path) -> None:
    killed_under_load(tmp_path, scaled(10, least=10))
