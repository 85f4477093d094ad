"""What workers say of themselves in shared memory: whole, bounded, and gone with them."""

import os
import signal

from hotplate.serve.errors import ServiceFinding
from hotplate.serve.reader import TieredReader
from hotplate.serve.states import FINDINGS, SENTENCE_CHARS, Reporter, SharedStates, TierState, WorkerState
from tests.support.memory_store import MemoryStore
from tests.support.remote import publish


def state_of(text: str, tiers: int = 1, findings: int = FINDINGS) -> WorkerState:
    """Return a state whose every text is *text*."""
    finding = ServiceFinding("restored", text[:SENTENCE_CHARS])
    tier = TierState("file", text[:40], [finding] * findings, False, 1.0, 2.0)
    return WorkerState(
        os.getpid(), "ready", 1.0, 2.0, 0.0, [tier] * tiers, {text[:40]: [1, 2, 3]}, 3, [finding] * FINDINGS
    )


def test_the_longest_state_of_as_many_tiers_as_there_are_fits() -> None:
    for tiers in (1, 5):
        states = SharedStates(2, tiers)
        longest = state_of("\U0001f600" * 1000, tiers)
        states.write(1, longest)
        assert states.all() == [None, longest]
        states.clear(1)
        assert states.all() == [None, None]


def test_a_state_that_does_not_fit_leaves_its_neighbour_alone() -> None:
    states = SharedStates(2, 1)
    states.write(1, state_of("b"))
    states.write(0, state_of("\U0001f600" * 1000, tiers=1, findings=100))
    assert states.all() == [None, state_of("b")]


def test_a_state_is_never_read_half() -> None:
    states = SharedStates(1, 1)
    both = [state_of("a" * 400), state_of("b" * 30)]
    states.write(0, both[0])
    writer = os.fork()
    if writer == 0:
        while True:
            for state in both:
                states.write(0, state)
    try:
        found = [states.read(0) for _ in range(20_000)]
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    assert all(state is None or state in both for state in found)  # None where it was written to all the while
    assert found.count(None) < len(found) / 10
    assert both[0] in found
    assert both[1] in found


async def test_lookups_are_counted_by_served_release(memory: MemoryStore) -> None:
    async with TieredReader({"memory": memory}) as reader:
        (tier,) = reader.tiers
        for _ in range(2):
            release = await publish(memory, "r", users=range(2))
            await tier.follower.refresh()
            for user in ("0", "1", "nobody"):
                await reader.personal(user)
            await reader.personal_many(["0", "nobody"])
            assert Reporter(reader.tiers).state().lookups == {release: [3, 2, 0]}


def test_a_worker_that_was_waited_for_is_left_out_until_it_accepts() -> None:
    states = SharedStates(2, 1)
    assert not states.has_most_connections(1, 0)
    assert states.has_most_connections(0, 32)
    assert not states.has_most_connections(0, 32, waited=True)
    assert not states.has_most_connections(0, 64)
    assert not states.has_most_connections(1, 0)
    assert states.has_most_connections(0, 64)
