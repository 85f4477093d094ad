"""What a worker takes on and what it refuses: turns of batches, deadlines, clients that have gone, real overload."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from serve.admission import Admission, ClientGone
from serve.problems import Problem
from tests.support.limited_service import limited, memory_mb, shed, until
from tests.support.service import Service, a_list, publish_lists


class Gate:
    """An admission that measures, and batches whose work ends when the test says so."""

    def __init__(self) -> None:
        self.counted = Counter[str]()
        self.admission = Admission(lambda reason: self.counted.update([reason]))
        self.begun = list[str]()
        self.end = asyncio.Event()

    def batch(
        self, name: str, *, deadline: float = inf, is_gone: Callable[[], bool] = lambda: False
    ) -> "asyncio.Task[str]":
        async def work() -> str:
            self.begun.append(name)
            await self.end.wait()
            return name

        async def admitted() -> str:
            return await self.admission.batch(work, deadline=deadline, is_gone=is_gone)

        return asyncio.create_task(admitted())


def measured(test: Callable[[Gate], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        gate = Gate()
        gate.admission.start()
        try:
            await test(gate)
        finally:
            gate.admission.stop()

    asyncio.run(run())


def test_a_batch_waits_for_its_turn_and_the_oldest_is_next() -> None:
    async def test(gate: Gate) -> None:
        gate.end.set()
        names = [gate.batch(name) for name in "abc"]
        assert await asyncio.gather(*names) == ["a", "b", "c"]
        assert gate.begun == ["a", "b", "c"]
        assert not gate.counted

    measured(test)


def test_more_batches_begin_where_those_that_run_only_wait_for_a_store() -> None:
    async def test(gate: Gate) -> None:
        async with asyncio.timeout(20):
            while len(gate.begun) < 4:
                batches = [gate.batch(str(n)) for n in range(4)]
                await asyncio.wait(batches, timeout=0.1)
        gate.end.set()

    measured(test)


def test_a_batch_that_waits_too_long_is_refused_and_says_when_to_come_back() -> None:
    async def test(gate: Gate) -> None:
        waiting = [gate.batch(str(n)) for n in range(100)]
        async with asyncio.timeout(30):
            while not gate.counted["batch_delay"]:
                await asyncio.sleep(0.01)
        gate.end.set()
        errors = [one for one in await asyncio.gather(*waiting, return_exceptions=True) if isinstance(one, Problem)]
        assert {(error.status, error.name) for error in errors} == {(503, "overloaded")}
        pauses = {error.headers["Retry-After"] for error in errors}
        assert len(pauses) > 1, "they would all come back together"
        assert pauses <= {"1", "2", "3", "4"}

    measured(test)


def test_work_whose_client_has_gone_or_waits_no_longer_is_not_begun() -> None:
    async def test(gate: Gate) -> None:
        with pytest.raises(ClientGone):
            await gate.batch("gone", is_gone=lambda: True)
        with pytest.raises(Problem, match="has passed"):
            await gate.batch("late", deadline=monotonic() - 1)
        gate.end.set()
        assert await gate.batch("next") == "next"
        assert gate.begun == ["next"]
        assert gate.counted == {"gone": 1, "deadline": 1}

    measured(test)


def test_a_turn_is_not_lost_with_a_task_that_is_cancelled() -> None:
    async def test(gate: Gate) -> None:
        first, second = gate.batch("first"), gate.batch("second")
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        gate.end.set()
        assert await gate.batch("third") == "third"

    measured(test)


def answered(service: Service) -> bool:
    assert service.get("/v1/recommendations/1").status == service.get("/readyz").status == 200
    return True


def test_too_many_batches_are_refused_while_reads_and_probes_are_answered(tmp_path: Path) -> None:
    store = tmp_path / "store"
    asyncio.run(publish_lists(store, {f"user:{n}": a_list(*map(str, range(20))) for n in range(50)}))
    batch = b'{"users": [' + b",".join(b'"%d"' % (n % 50) for n in range(2000)) + b'], "n": 1}'
    statuses, over = Counter[int](), threading.Event()

    with limited(store) as service:

        def post() -> None:
            while not over.is_set():
                answer = service.request("POST", "/v1/recommendations", batch)
                statuses[answer.status] += 1
                assert answer.status == 200 or 1 <= int(answer.headers["retry-after"]) <= 4

        callers = [threading.Thread(target=post) for _ in range(40)]
        for caller in callers:
            caller.start()
        try:
            until(lambda: answered(service) and statuses[200] > 20 and statuses[503] > 20, "none is refused")
        finally:
            over.set()
        for caller in callers:
            caller.join()
        assert set(statuses) == {200, 503}
        assert shed(service, "batch_delay") == statuses[503]
        assert memory_mb(service) < 200
        assert service.request("POST", "/v1/recommendations", batch).status == 200
