"""What workers say of themselves in shared memory: whole, bounded, and gone with them."""

import os
import signal

from hotplate.serve.errors import ServiceFinding
from hotplate.serve.metrics import BUCKETS_S
from hotplate.serve.readiness import Status
from hotplate.serve.releases.canary import BothCounts, ReleaseCounts
from hotplate.serve.states import FINDINGS, SENTENCE_CHARS, ProcessState, TierState
from hotplate.stores.catalogue import Release, ReleaseId, State
from tests.support.shared import shared_states


def state_of(text: str, tiers: int = 1, findings: int = FINDINGS) -> ProcessState:
    """Return a state with *text* in every text field."""
    finding = ServiceFinding("restored", text[:SENTENCE_CHARS])
    release = text[:40]
    counts = ReleaseCounts(1.0, 2.0, 3.0, reads=tuple(map(float, range(len(BUCKETS_S) + 1))))
    tier = TierState(
        "file",
        release,
        [finding] * findings,
        False,
        1.0,
        2.0,
        canary=release,
        canary_counts=BothCounts(counts, counts),
        followed_canary=Release(ReleaseId(release), release, State.WITHDRAWN, 1.0, release, 2.0),
        canary_began_with=BothCounts(counts, counts),
        stopped_canary=release,
    )
    return ProcessState(
        os.getpid(), Status.READY, 1.0, 2.0, 0.0, [tier] * tiers, {text[:40]: [1, 2, 3]}, 3, [finding] * FINDINGS
    )


def test_longest_state_of_all_tiers_fits() -> None:
    for tiers in (1, 5):
        states = shared_states(2, tiers)
        longest = state_of("\U0001f600" * 1000, tiers)
        states.write(1, longest)
        assert states.all() == [None, longest]
        states.clear(1)
        assert states.all() == [None, None]


def test_too_long_state_does_not_touch_its_neighbour() -> None:
    states = shared_states(2)
    states.write(1, state_of("b"))
    states.write(0, state_of("\U0001f600" * 1000, tiers=1, findings=100))
    assert states.all() == [None, state_of("b")]


def test_state_is_read_atomically() -> None:
    states = shared_states(1)
    both = [state_of("a" * 400), state_of("b" * 30)]
    states.write(0, both[0])
    writer = os.fork()
    if writer == 0:
        while True:
            for state in both:
                states.write(0, state)
    seen = set[int]()
    reads = 0
    try:
        while reads < 5_000 or len(seen) < len(both):  # a busy machine may stop the writer for long
            read_state = states.read(0)
            reads = reads + 1
            assert read_state is None or read_state in both  # None if a writer was always in the middle
            seen |= {both.index(read_state)} if read_state is not None else set()
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
