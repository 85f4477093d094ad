"""The writer: commits are shared, its queue is bounded; a disk that fails is a refusal, and no kill loses an event."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout, web

from hotplate.serve.api.events import EventsHandler
from hotplate.serve.api.router import DeferredResponse
from hotplate.serve.api.routes import EVENT_COUNTS
from hotplate.serve.api.schemas import NoQuery
from hotplate.serve.consumed.table import Consumed
from hotplate.serve.events.writer import MAX_QUEUED_BYTES, DiskFailed, EventWriter, QueueFull
from hotplate.serve.metrics import Metrics
from hotplate.serve.problems import Problem
from hotplate.stores.event_log import LogSegment, SegmentReader, line_of, segments
from tests.support.event_log import body, ids, written
from tests.support.limited_service import counted
from tests.support.property import depths
from tests.support.service import Service, published, running, running_app, until
from tests.support.small_disk import small_disk
from tests.support.waiting import until_true

MB = 1 << 20
CALLERS = 4
EVENTS = 5
AS_JSON = {"Content_Type": "application/json"}


async def test_pending_events_are_committed_together_and_all_of_them_on_stop(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    waiting = [writer.append(line_of(b'{"id":"%d"}' % number)) for number in range(1000)]
    await waiting[0]
    waiting.pop().cancel()  # its caller has gone
    late = [writer.append(line_of(b'{"id":"%d"}' % number)) for number in range(1000, 1010)]
    await writer.close()
    await asyncio.gather(*waiting, *late)
    assert [event["id"] for event in written(tmp_path)] == [str(number) for number in range(1010)]
    (segment,) = segments(tmp_path)
    assert segment.read_bytes().count(b"\x28\xb5\x2f\xfd") < 100


async def test_events_beyond_the_queue_are_refused_until_it_drained(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    line = line_of(b'"' + b"x" * MB + b'"')
    # The loop does not turn here: nothing is known to be written.
    waiting = [writer.append(line) for _ in range(MAX_QUEUED_BYTES // len(line))]
    with pytest.raises(QueueFull):
        writer.append(line)
    await asyncio.gather(*waiting)
    await writer.append(line)
    await writer.close()
    assert len(written(tmp_path)) == len(waiting) + 1


@pytest.mark.parametrize("call", ["append", "close"])
async def test_segment_error_refuses_events_and_later_ones_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("hotplate.serve.events.writer.recover", fails)
        patch.setattr(LogSegment, "append", fails)
        writer = EventWriter(tmp_path)
        patch.setattr(LogSegment, call, fails)
        with pytest.raises(DiskFailed):
            await asyncio.wait_for(writer.append(line_of(b'{"id":"first"}')), 10)
        with pytest.raises(DiskFailed):
            await asyncio.wait_for(writer.append(line_of(b'{"id":"again"}')), 10)
    assert "and are refused: MemoryError" in str(writer.warning)
    await writer.append(line_of(b'{"id":"second"}'))
    await writer.close()
    assert (ids(tmp_path), writer.warning) == ({"second"}, None)


@asynccontextmanager
async def taking(folder: Path, consumed: Consumed | None = None) -> AsyncIterator[tuple[Metrics, str]]:
    """Take events in this process; yields the counters and the URL."""
    writer = EventWriter(folder)
    metrics = Metrics(1, [])
    handler = EventsHandler(writer, lambda _: "live", metrics, consumed=consumed)

    async def answer(request: web.Request) -> web.Response:
        try:
            response = await handler.report(request, "", NoQuery(), await request.read())
            assert isinstance(response, DeferredResponse)
            return await response.resolve()
        except Problem as problem:
            return problem.response()

    app = web.Application()
    app.router.add_post("/", answer)
    async with running_app(app) as url:
        yield metrics, url
    await writer.close()


async def test_loop_is_not_blocked_while_items_of_many_events_are_hidden(tmp_path: Path) -> None:
    consumed = Consumed(["buy=24"])
    turns = 0
    headers = {"Content-Type": "application/json"}
    async with taking(tmp_path, consumed) as (_, url), ClientSession() as session:
        sent = asyncio.ensure_future(session.post(url, data=body(*map(str, range(20)), kind="buy"), headers=headers))
        while consumed.hidden_from("u19") is None:
            turns += consumed.hidden_from("u0") is not None and not sent.done()
            await asyncio.sleep(0)
        assert (turns > 10, (await sent).status) == (True, 200)


async def test_events_are_rejected_and_counted_if_the_queue_is_full_or_disk_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with taking(tmp_path) as (metrics, url), ClientSession() as session:

        async def report(name: str) -> tuple[int, bool, str]:
            async with session.post(url, data=body(name), headers={"Content-Type": "application/json"}) as response:
                said = (await response.json()).get("detail", "")
                return response.status, "Retry-After" in response.headers, said

        def full(*_: object) -> None:
            raise QueueFull

        with monkeypatch.context() as patch:
            patch.setattr(EventWriter, "append", full)
            status, retries, said = await report("full")
        assert (status, retries, "were not written" in said) == (503, True, True)
        monkeypatch.setattr("hotplate.serve.api.events.COMMIT_S", 0)
        status, retries, said = await report("late")
        assert (status, retries, "they may still be" in said) == (503, True, True)
        monkeypatch.undo()
        assert (await report("well"))[0] == 200
    assert ids(tmp_path) == {"late", "well"}
    cells = metrics.cells[EVENT_COUNTS]
    counts = {outcome: metrics.total(cell)[0] for (kind, outcome), cell in cells.items() if kind == "click"}
    assert counts == {"durable": 1, "queue_full": 1, "disk_failed": 0, "late": 1}


@pytest.mark.parametrize("gives_up", ["service", "client"])
async def test_events_that_are_durable_after_the_wait_hide_their_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives_up: str
) -> None:
    consumed = Consumed(["buy=24"])
    disk_answers = threading.Event()
    append = LogSegment.append

    def stall(segment: LogSegment, lines: Sequence[bytes]) -> None:
        disk_answers.wait(60)
        append(segment, lines)

    monkeypatch.setattr(LogSegment, "append", stall)
    headers = {"Content-Type": "application/json"}
    async with taking(tmp_path, consumed) as (_, url), ClientSession() as session:
        if gives_up == "service":
            monkeypatch.setattr("hotplate.serve.api.events.COMMIT_S", 0)
            async with session.post(url, data=body("1", kind="buy"), headers=headers) as response:
                assert response.status == 503
        else:
            timeout = ClientTimeout(total=0.2)
            with pytest.raises(TimeoutError):
                await session.post(url, data=body("1", kind="buy"), headers=headers, timeout=timeout)
        assert consumed.hidden_from("u1") is None
        disk_answers.set()
        await until_true(lambda: consumed.hidden_from("u1") is not None)


def test_full_disk_rejects_events_but_serves_lists_and_recovers_by_itself(tmp_path: Path) -> None:
    published(tmp_path / "store", {})
    disk = tmp_path / "disk"
    with small_disk(disk, MB), running(tmp_path / "store", "--events", str(disk / "log")) as service:
        assert service.post("/v1/events", body("before"), **AS_JSON).status == 200
        with (disk / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        for _ in range(3):
            refused = service.post("/v1/events", body(*(f"lost{n}" for n in range(500))), **AS_JSON)
            assert (refused.status, refused.headers["retry-after"]) == (503, "10")
            assert refused.json["type"] == "urn:hotplate:problem:events-not-written"
        assert (service.get("/v1/popular").status, service.status) == (200, "degraded")
        until(lambda: "events cannot be written to" in str(service.states()))
        assert counted(service, "hotplate_events_total", outcome="disk_failed") == 1500
        (disk / "filler").unlink()
        assert service.post("/v1/events", body("after"), **AS_JSON).status == 200
        assert service.status == "ready"
        log = service.log.read_text()
        assert (log.count("events cannot be written"), log.count("are written to")) == (1, 1)
        assert ids(disk / "log") == {"before", "after"}


def report(service: Service, caller: int, durable: set[str], over: threading.Event) -> None:
    """Report events until it is over; remember those that were answered."""
    for request in count():
        if over.is_set():
            return
        sent = [f"{caller}-{request}-{number}" for number in range(EVENTS)]
        try:
            answer = service.post("/v1/events", body(*sent), Content_Type="application/json")
        except OSError:  # the worker was killed, and the outcome is unknown
            time.sleep(0.01)
            continue
        if answer.status == 200:
            durable.update(sent)


@depths(2, 10)
def test_acknowledged_events_survive_kills(tmp_path: Path, examples: int) -> None:
    published(tmp_path / "store", {})
    over = threading.Event()
    durable = [set[str]() for _ in range(CALLERS)]

    def wait_for_more() -> None:
        """Wait until more has been answered than before."""
        before = sum(map(len, durable))
        until(lambda: sum(map(len, durable)) >= before + 10 * EVENTS)

    with running(tmp_path / "store", "--events", str(tmp_path / "log")) as service:
        callers = [
            threading.Thread(target=report, args=(service, number, durable[number], over)) for number in range(CALLERS)
        ]
        for caller in callers:
            caller.start()
        try:
            for _ in range(examples):
                wait_for_more()
                for worker in service.workers():
                    os.kill(worker, signal.SIGKILL)
            wait_for_more()
        finally:
            over.set()
            for caller in callers:
                caller.join()
        assert service.stop() == 0
        assert service.log.read_text().count("was killed; its events are kept") == examples
    assert set().union(*durable) <= ids(tmp_path / "log")
    closed = segments(tmp_path / "log")
    assert len(closed) == len(list((tmp_path / "log").iterdir())) == examples + 1
    for path in closed:
        reader = SegmentReader(path.read_bytes())
        assert list(reader)
        assert (reader.damaged, reader.whole_bytes) == (0, path.stat().st_size)
