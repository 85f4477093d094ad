"""A swap with a lost reply is made once; an impossible one is reported."""

import secrets
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import Catalogue, ReleaseId, State
from hotplate.stores.errors import NotSent, StoreUnavailable
from hotplate.stores.publication import begin
from hotplate.stores.redis.errors import RowsLost
from hotplate.stores.store import RecordChange, Store
from tests.support.clock import FakeClock
from tests.support.memory_store import MemoryStore
from tests.support.stores import OpenStore, draft_of, on_every_store, publish
from tests.support.virtual import virtual


class Lossy:
    """Loses the replies of some swaps of a store: made, but reported as unknown; or never made, where *requests*."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, *, requests: bool = False) -> None:
        self.swaps = 0
        self.lose = set[int]()
        self._swap = store.swap
        self._requests = requests
        monkeypatch.setattr(store, "swap", self.swap)

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        self.swaps += 1
        lost = self.swaps in self.lose
        if not (lost and self._requests):
            await self._swap(old, new, records)
        if lost:
            raise StoreUnavailable("the reply was lost")


@on_every_store
@pytest.mark.parametrize("requests", [False, True], ids=["the reply", "the request"])
async def test_rollback_with_a_lost_message_is_made_once(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, *, requests: bool
) -> None:
    store = open_store()
    _, second, _ = [await publish(store) for _ in range(3)]
    lossy = Lossy(store, monkeypatch, requests=requests)
    lossy.lose = {1}
    assert await life.rollback(store) == second
    assert (await store.catalogue()).live == second
    assert lossy.swaps == 1 + requests


@on_every_store
@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_publish_with_a_lost_reply_succeeds(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    store = open_store()
    lossy = Lossy(store, monkeypatch)
    lossy.lose = {lost}  # of begin, commit and activate
    live = await publish(store)
    catalogue = await store.catalogue()
    assert [(entry.id, entry.state) for entry in catalogue.releases] == [(live, State.LIVE)]
    assert lossy.swaps == 3


@virtual
async def test_releases_of_one_second_get_different_ids(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["aaaa", "aaaa", "bbbb"])
    draw = secrets.token_hex
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(drawn) if size == 2 else draw(size))
    store = MemoryStore(clock=clock)
    first = await publish(store)
    second = await publish(store)
    assert (first[-4:], second[-4:], first[:-4]) == ("aaaa", "bbbb", second[:-4])


@virtual
async def test_failed_swap_on_a_readable_store_reports_that_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await publish(store)
    live = await publish(store)
    Lossy(store, monkeypatch, requests=True).lose = set(range(100))
    with pytest.raises(StoreUnavailable, match="the reply was lost; the catalogue has not changed so far"):
        await life.rollback(store)
    assert (await store.catalogue()).live == live


@virtual
async def test_store_lost_after_a_swap_reports_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await publish(store)
    await publish(store)

    async def gone(*_: object) -> None:
        raise StoreUnavailable("the server is gone")

    catalogue = await store.catalogue()

    async def swap_and_go(old: Catalogue, new: Catalogue, records: Sequence[RecordChange]) -> None:
        monkeypatch.setattr(store, "catalogue", gone)
        await gone(old, new, records)

    monkeypatch.setattr(store, "swap", swap_and_go)
    with pytest.raises(StoreUnavailable, match="is not known: see `hotplate releases list`"):
        await life.rollback(store)
    monkeypatch.undo()
    assert await store.catalogue() == catalogue


def overtake(store: Store, monkeypatch: pytest.MonkeyPatch, step: Callable[[], Awaitable[object]]) -> None:
    """Let another process take a step after the next swap, and lose the swap's reply."""
    swap = store.swap

    async def overtaken(old: Catalogue, new: Catalogue, records: Sequence[RecordChange]) -> None:
        await swap(old, new, records)
        monkeypatch.setattr(store, "swap", swap)
        await step()
        raise StoreUnavailable("the reply was lost")

    monkeypatch.setattr(store, "swap", overtaken)


async def prune_all(store: Store) -> None:
    await life.update_catalogue(store, lambda catalogue: changes.prune(catalogue, 0, 0.0))


@pytest.mark.parametrize("step", [prune_all, lambda store: begin(store, ReleaseId("draft"))], ids=["prune", "begin"])
async def test_overtaken_rollback_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, step: Callable[[Store], Awaitable[object]]
) -> None:
    store = MemoryStore()
    _, second, _ = [await publish(store) for _ in range(3)]
    overtake(store, monkeypatch, lambda: step(store))
    with pytest.raises(StoreUnavailable, match="is not known: see `hotplate releases list`"):
        await life.rollback(store)
    assert (await store.catalogue()).live == second


@virtual
async def test_unclear_swaps_between_those_of_others_have_an_unknown_result(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    first, second = [await publish(store) for _ in range(2)]
    swap = store.swap
    others = cycle([first, second])

    async def overtaken(old: Catalogue, new: Catalogue, records: Sequence[RecordChange]) -> None:
        del new
        await swap(old, changes.succeed(old, changes.activate(old, next(others)), secrets.token_hex(8), ""), records)
        raise StoreUnavailable("the reply was lost")

    monkeypatch.setattr(store, "swap", overtaken)
    with pytest.raises(StoreUnavailable, match="whether the catalogue was changed is not known"):
        await life.update_catalogue(store, lambda catalogue: changes.prune(catalogue, 0, 0.0))


async def test_overtaken_activation_does_not_undo_later_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    first, second, third = [await publish(store) for _ in range(3)]
    overtake(store, monkeypatch, lambda: life.activate(store, second))
    with pytest.raises(StoreUnavailable, match="is not known: see `hotplate releases list`"):
        await life.activate(store, first)
    catalogue = await store.catalogue()
    assert ([entry.id for entry in catalogue.releases], catalogue.live) == ([third, first, second], second)


async def test_activation_overtaken_by_a_draft_has_taken_place(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await publish(store)
    ready = await publish(store, live=False)
    overtake(store, monkeypatch, lambda: begin(store, ReleaseId("draft")))
    assert await life.activate(store, ready)
    assert (await store.catalogue()).live == ready


@pytest.mark.parametrize("failures", [1, 1000])
@virtual
async def test_swap_that_was_not_sent_is_sent_again_or_raises_its_error(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    store = MemoryStore()
    first, second = [await publish(store) for _ in range(2)]
    swap = store.swap
    unsent = 0

    async def fail_after_others(old: Catalogue, new: Catalogue, records: Sequence[RecordChange]) -> None:
        nonlocal unsent
        unsent += 1
        if unsent > failures:
            await swap(old, new, records)
            return
        others = changes.begin(old, draft_of(ReleaseId(f"draft-{unsent}")))
        await swap(old, changes.succeed(old, others, secrets.token_hex(8), ""), records)
        raise NotSent("the sentinels do not answer")

    monkeypatch.setattr(store, "swap", fail_after_others)
    if failures == 1:
        assert await life.rollback(store) == first
        return
    with pytest.raises(NotSent, match=r"^the sentinels do not answer$"):
        await life.rollback(store)
    assert (await store.catalogue()).live == second


async def test_permanent_failure_of_a_swap_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    for _ in range(2):
        await publish(store)
    lost = RowsLost("the server has lost rows")
    swaps = 0

    async def refuse(*_: object) -> None:
        nonlocal swaps
        swaps += 1
        raise lost

    monkeypatch.setattr(store, "swap", refuse)
    with pytest.raises(RowsLost) as raised:
        await life.rollback(store)
    assert raised.value is lost
    assert swaps == 1


@pytest.mark.parametrize("permanent", [False, True], ids=["unclear", "permanent"])
@virtual
async def test_later_failure_does_not_settle_an_unclear_swap(
    monkeypatch: pytest.MonkeyPatch, *, permanent: bool
) -> None:
    store = MemoryStore()
    first, second = [await publish(store) for _ in range(2)]

    async def fail(*_: object) -> None:
        failure = StoreUnavailable("this is forbidden" if permanent else "the reply was lost")
        failure.permanent = permanent
        raise failure

    async def activate_second() -> None:
        await life.activate(store, second)
        monkeypatch.setattr(store, "swap", fail)

    overtake(store, monkeypatch, activate_second)
    with pytest.raises(StoreUnavailable, match=r"^the reply was lost; whether the catalogue was changed is not known"):
        await life.update_catalogue(store, lambda catalogue: changes.activate(catalogue, first))
