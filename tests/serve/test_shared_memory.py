"""Shared memory: whatever a killed writer leaves, readers see the old record or the new one, and counts are kept."""

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.metrics import LOOKUP_COUNTS, LOOKUPS, Metrics
from hotplate.serve.processes.context import create_context
from hotplate.serve.processes.states import SharedStates
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.shared_memory import Records, RecordTooLarge, shared_floats, shared_integers

SIZE = 300
ROWS = 3
LARGE = 200_000

VALUE = st.binary(min_size=1, max_size=SIZE)
WRITTEN = st.lists(st.tuples(st.integers(0, ROWS - 1), st.binary(max_size=SIZE)), max_size=30)


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """Run *work* again and again in another process, which is killed at the end of the block."""
    pid = os.fork()
    if pid == 0:
        _repeat(work)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _repeat(work: Callable[[], object]) -> NoReturn:
    try:
        while True:
            work()
    finally:
        os._exit(1)


def numbered(number: int, size: int) -> bytes:
    """Return a value of which every part identifies it."""
    piece = b"%08d" % number
    return piece * (size // len(piece))


def number_of(value: bytes) -> int:
    """Return the number of a value, which is one value only if it says the same everywhere."""
    assert value == value[:8] * (len(value) // 8)
    return int(value[:8])


@given(WRITTEN)
def test_records_round_trip_without_touching_neighbours(written: list[tuple[int, bytes]]) -> None:
    records = Records("records", SIZE, ROWS)
    expected: list[bytes | None] = [None] * ROWS
    for row, value in written:
        records.write(row, value)
        expected[row] = value or None
        assert [records.read(number) for number in range(ROWS)] == expected
    records.clear(0)
    assert records.read(0) is None


@given(st.lists(VALUE, max_size=3), VALUE, VALUE, st.data())
def test_partial_write_leaves_the_old_record(earlier: list[bytes], old: bytes, new: bytes, data: st.DataObject) -> None:
    records = Records("records", SIZE)
    memory = records.memory
    for value in (*earlier, old):
        records.write(0, value)
    before = memory[:]
    records.write(0, new)
    after = memory[:]
    changed = [place for place in range(len(before)) if before[place] != after[place]]
    missing = data.draw(st.sets(st.sampled_from(changed), min_size=1))
    torn = bytearray(after)
    for place in missing:
        torn[place] = before[place]
    memory[:] = bytes(torn)
    assert records.read(0) == old
    records.write(0, new)
    assert records.read(0) == new


@pytest.mark.parametrize("size", [40, 5_000, LARGE])
def test_readers_see_whole_records_of_writers_that_are_killed_at_any_time(size: int) -> None:
    """And never an older record after a newer one; a successor continues behind the last whole one."""
    records = Records("records", size)
    pauses = random.Random(size)
    records.write(0, numbered(0, size))
    last = 0
    for _ in range(10):
        former = last
        with forked(partial(write_next, records, count(last + 1), size)):
            while last == former:  # a loaded machine may start the writer late
                last = read_after(records, last)
            ends = time.monotonic() + pauses.uniform(0.0, 0.01)
            while time.monotonic() < ends:
                last = read_after(records, last)
        last = read_after(records, last)
        assert read_after(records, last) == last, "somebody writes though the writer is dead"
    records.write(0, numbered(last + 1, size))
    assert records.read(0) == numbered(last + 1, size)


def write_next(records: Records, numbers: Iterator[int], size: int) -> None:
    records.write(0, numbered(next(numbers), size))


def read_after(records: Records, last: int) -> int:
    """Return the number of the record, which is not before *last*."""
    value = records.read(0)
    assert value is not None
    number = number_of(value)
    assert number >= last, "an older record was read after a newer one"
    return number


def test_records_that_are_too_large_are_refused() -> None:
    records = Records("records", SIZE, ROWS)
    records.write(1, b"old")
    with pytest.raises(RecordTooLarge, match=r"301 bytes do not fit into the shared record 'records'.*at most 300"):
        records.write(1, bytes(SIZE + 1))
    assert [records.read(row) for row in range(ROWS)] == [None, b"old", None]
    records.write(1, bytes(SIZE))
    assert records.read(1) == bytes(SIZE)


@pytest.mark.parametrize(
    ("cells", "high", "low"),
    [(shared_floats(5), 2.0**200, -(2.0**-200)), (shared_integers(5), 0xFFFF_0000, 0x0000_FFFF)],
    ids=["floats", "integers"],
)
def test_counters_are_read_atomically_and_outlive_their_writer(
    cells: "memoryview[float]", high: float, low: float
) -> None:
    def write() -> None:
        cells[0] = high
        cells[0] = low

    with forked(write):
        seen: set[float] = {0}
        while not {high, low} <= seen:
            seen |= {cells[0] for _ in range(1000)}
    assert seen == {0, high, low}
    assert cells[0] in (high, low)


def test_counts_of_killed_workers_are_kept_and_continued() -> None:
    metrics = Metrics(2, ["file"])
    last = 0.0

    def count_in_second_slot() -> None:
        own.count_lookup("personal", "hit")

    for _ in range(10):
        own = metrics.in_slot(1)
        with forked(count_in_second_slot):
            while total_of(metrics) < last + 100:
                assert total_of(metrics) >= last
        last = total_of(metrics)
        assert total_of(metrics) == last
    assert last >= 1000
    assert metrics.own_cells[LOOKUPS["personal", "hit"]] == 0.0, "it is of the other slot"


def total_of(metrics: Metrics) -> float:
    (total,) = metrics.counted(LOOKUP_COUNTS)["personal", "hit"]
    return total


def test_missing_shared_memory_is_a_misuse_with_advice() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_kb("VmSize") + (64 << 10) << 10, hard))
    try:
        with pytest.raises(ServiceMisused, match=r"shared memory for 256 workers .* --workers"):
            create_context(ServiceSettings(("file:///x",), workers=256))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_memory_is_bounded_and_old_large_records_are_returned() -> None:
    records = Records("records", 8 << 20, rows=2)
    before = shared_kb()
    for size in (8 << 20, 7 << 20, 8 << 20, 1, 8 << 20):
        records.write(0, bytes([7]) * size)
    assert shared_kb() - before <= (8 << 10) + 64  # and not twice as much
    records.clear(0)
    assert shared_kb() - before <= 64


def shared_kb() -> int:
    """Return the shared memory of this process."""
    return memory_kb("RssShmem")


def memory_kb(name: str) -> int:
    """Return a figure of the memory of this process, as the system names it."""
    with open(f"/proc/{os.getpid()}/status") as file:  # noqa: PTH123
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


@pytest.mark.parametrize(
    ("workers", "tiers"), [(1, ["file"]), (16, ["file", "redis"]), (256, ["a", "b", "c", "d", "e"])]
)
def test_declared_memory_is_not_allocated_for_any_size(workers: int, tiers: list[str]) -> None:
    before = shared_kb()
    states = SharedStates(workers, len(tiers))
    metrics = Metrics(workers + 1, tiers)
    assert metrics.in_slot(workers).own_cells
    assert shared_kb() - before < 64
    assert states.all() == [None] * workers
