"""What workers say of themselves in shared memory: whole, bounded, and gone with them."""

import os
import time

import msgspec

from hotplate.serve.errors import ServiceFinding
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.processes.readiness import Status
from hotplate.serve.processes.states import ProcessState, Reporter, SharedStates, TierState, service_status
from hotplate.stores.catalogue import Release, ReleaseId, ReleaseRef, State
from hotplate.stores.encoding import MAX_LIST_NAME, MAX_LISTS
from tests.support.memory_store import MemoryStore
from tests.support.service import publish_through


def state_of(text: str, tiers: int = 1, findings: int = 5) -> ProcessState:
    """Return a state with *text* in every text field."""
    finding = ServiceFinding("restored", text)
    release = text[:40]
    tier = TierState(
        "file",
        ReleaseRef(ReleaseId(release), release),
        [finding] * findings,
        False,
        1.0,
        2.0,
        served={"live": ReleaseId(release), "canary": ReleaseId(release)},
        followed_canary=Release(ReleaseId(release), release, State.WITHDRAWN, 1.0, release, 2.0),
        is_canary_stopped=True,
        rules=(text,) * 100,
    )
    names = ["", *(f"{name:0{MAX_LIST_NAME}}" for name in range(MAX_LISTS))]
    lookups = {f"{number:02}{release}": {name: [1 << 40, 2, 3] for name in names} for number in range(2 * tiers)}
    return ProcessState(
        os.getpid(),
        Status.READY,
        1.0,
        2.0,
        0.0,
        [tier] * tiers,
        lookups,
        3,
        [finding] * 5,
    )


def test_longest_state_of_all_tiers_fits() -> None:
    for tiers in (1, 5):
        states = SharedStates(2, tiers)
        longest = state_of("\U0001f600" * 1000, tiers)
        states.write(1, longest)
        assert states.all() == [None, longest]
        states.clear(1)
        assert states.all() == [None, None]


def test_too_long_state_is_reported_without_details_and_spares_its_neighbour() -> None:
    states = SharedStates(2, tiers=1)
    states.write(1, state_of("b"))
    for _ in range(3):  # each of these is a sign of life
        long = msgspec.structs.replace(state_of("\U0001f600" * 1000, findings=1000), reported_at=time.monotonic())
        states.write(0, long)
        reported, neighbour = states.all()
        assert neighbour == state_of("b")
        assert reported is not None
        assert (reported.pid, reported.status, reported.connections) == (long.pid, Status.READY, long.connections)
        assert reported.reported_at == long.reported_at
        assert "are not reported" in reported.findings[0].sentence
        assert reported.findings[1:] == long.findings  # files with a problem are counted by them
    assert service_status([reported]) is Status.READY


async def test_release_with_hundreds_of_long_rule_names_is_reported(memory: MemoryStore) -> None:
    names = [f"{number:03} " + "\U0001f600" * 300 for number in range(500)]
    await publish_through(memory, {}, about={"rules": {name: {"weight": 0.3} for name in names}})
    reader = TieredReader({"memory": memory})
    await reader.tiers[0].follower.refresh()

    states = SharedStates(1, tiers=1)
    states.write(0, Reporter(reader.tiers).state())
    (reported,) = states.of_tier("memory")
    assert reported.release is not None
    assert reported.rules == tuple(names)
