"""Processes take turns between any two primitives of the store: in whichever order, the rules of the design hold."""

from collections.abc import Callable

import pytest
from hypothesis import seed
from hypothesis.stateful import run_state_machine_as_test

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.lifecycle import prune
from hotplate.stores.store import CheckCatalogue
from tests.support.interleaved import Interleaved, InterleavedOnCosmos, InterleavedOnDisk, on_redis
from tests.support.memory_store import MemoryStore
from tests.support.property import depth
from tests.support.soak import SEED, scaled
from tests.support.stores import publish


@pytest.fixture
def interleaved(request: pytest.FixtureRequest) -> type[Interleaved]:
    """Return the state machine over the named store, with separate counts."""
    request.getfixturevalue("patience")
    over = {"memory": Interleaved, "file": InterleavedOnDisk, "cosmos": InterleavedOnCosmos}.get(request.param)
    over = over or on_redis(request.getfixturevalue("redis_server"))
    return type("Counted", (over,), {"histories": 0, "steps": 0})


SOAK = [pytest.mark.soak, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("interleaved", "examples"),
    [
        *(("memory", 10), ("file", 3), ("redis", 3), ("cosmos", 2)),
        *(
            pytest.param(store, scaled(examples), id=f"{store}-soak", marks=SOAK)
            for store, examples in (("memory", 600), ("file", 31), ("redis", 31), ("cosmos", 31))
        ),
    ],
    indirect=["interleaved"],
)
def test_rules_hold_between_any_two_primitives(
    interleaved: type[Interleaved], examples: int, record_property: Callable[[str, object], None]
) -> None:
    run_state_machine_as_test(seed(SEED)(interleaved), settings=depth(examples, 30))
    record_property("histories", interleaved.histories)
    record_property("steps", interleaved.steps)
    assert interleaved.histories >= examples
    assert examples <= 30 or interleaved.steps > 20 * interleaved.histories


async def test_prune_erases_the_others_before_it_raises_the_error_of_one_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    released = [await publish(store) for _ in range(4)]
    erase = store.erase

    async def refuse_the_first(release: ReleaseRef, check: CheckCatalogue) -> None:
        if release.id == released[0]:
            raise ReleaseCorrupt("its state cannot be decoded")
        await erase(release, check)

    monkeypatch.setattr(store, "erase", refuse_the_first)
    with pytest.raises(ReleaseCorrupt, match="cannot be decoded"):
        await prune(store, keep=0, grace_s=0.0)
    assert [entry.id for entry in (await store.catalogue()).releases] == [released[0], released[3]]
