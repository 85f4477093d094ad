"""Processes take turns between any two primitives of the store: in whichever order, the rules of the design hold."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import Phase, seed
from hypothesis.stateful import run_state_machine_as_test

from hotplate.serve.releases import follower
from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import Catalogue, State
from tests.support.interleaved import Interleaved, InterleavedOnCosmos, InterleavedOnDisk, on_redis
from tests.support.memory_store import MemoryStore
from tests.support.property import depth
from tests.support.soak import SEED, scaled


@pytest.fixture
def interleaved(request: pytest.FixtureRequest) -> type[Interleaved]:
    """Return the machine over the store that is named, with counts of its own."""
    over = {"memory": Interleaved, "file": InterleavedOnDisk, "cosmos": InterleavedOnCosmos}.get(request.param)
    over = over or on_redis(request.getfixturevalue("redis_server"))
    return type("Counted", (over,), {"histories": 0, "steps": 0})


SOAK = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("interleaved", "examples"),
    [
        *(("memory", 30), ("file", 3), ("redis", 3), ("cosmos", 2)),
        *(
            pytest.param(store, scaled(examples), id=f"{store}-soak", marks=SOAK)
            for store, examples in (("memory", 1_500), ("file", 60), ("redis", 60), ("cosmos", 40))
        ),
    ],
    indirect=["interleaved"],
)
def test_the_rules_hold_between_any_two_primitives(
    interleaved: type[Interleaved], examples: int, record_property: Callable[[str, object], None]
) -> None:
    run_state_machine_as_test(seed(SEED)(interleaved), settings=depth(examples, 30))
    record_property("histories", interleaved.histories)
    record_property("steps", interleaved.steps)
    assert interleaved.histories >= examples
    assert examples <= 30 or interleaved.steps > 20 * interleaved.histories


# Protocols that are broken, and stores that do not keep their contract.


def lapsed(found: Catalogue) -> Catalogue:
    entries = (replace(one, lease_until=0.0) if one.state is State.DRAFT else one for one in found.releases)
    return replace(found, releases=tuple(entries))


def swap_without_comparing(self: MemoryStore, _old: Catalogue, new: Catalogue) -> Awaitable[None]:
    self.current = new
    return asyncio.sleep(0)


PRUNE, TAKE_OVER = changes.prune, changes.take_over


@pytest.mark.soak
@pytest.mark.parametrize(
    ("where", "name", "broken"),
    [
        pytest.param(changes, "prune", lambda found, *rest: PRUNE(lapsed(found), *rest), id="prunes under a lease"),
        pytest.param(
            changes, "prune", lambda found, keep, _, *rest: PRUNE(found, keep, 0.0, *rest), id="prunes without grace"
        ),
        pytest.param(changes, "prune", lambda *given: PRUNE(*given[:4]), id="leaves what no entry names"),
        pytest.param(follower, "follows", lambda found, _: found.generation > 0, id="follows whatever it reads"),
        pytest.param(follower, "RESTORED_S", 1e9, id="never follows a restore"),
        pytest.param(MemoryStore, "swap", swap_without_comparing, id="swaps without comparing"),
        pytest.param(
            changes, "take_over", lambda found, draft: TAKE_OVER(lapsed(found), draft), id="takes over under a lease"
        ),
    ],
)
@pytest.mark.timeout(600)
def test_histories_find_a_protocol_that(
    where: object, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, broken)
    machine = seed(1)(type("Broken", (Interleaved,), {}))
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=depth(5_000, 30, phases=[Phase.generate]))
