"""Containers that were made a moment ago: not seen everywhere yet, and that fails no publish."""

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores.cosmos.errors import ContainerMissing
from hotplate.stores.cosmos.retry import CONTAINER_VISIBLE_S
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Plan, Row
from tests.support.cosmos_simulation import SimulatedAccount, batches, with_simulation

ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{n}", b"%d" % n) for n in range(10))]


@pytest.mark.parametrize("unseen_s", [0.5, 20.0])
def test_a_publish_waits_until_its_containers_are_seen(unseen_s: float) -> None:
    async def work(account: SimulatedAccount) -> None:
        account.misbehave({"kind": "missing", "operation": "create item", "for_s": unseen_s})
        store = account.store()
        manifest = (await life.publish(store, batches(ROWS), plan=Plan(len(ROWS), 100), about={})).manifest
        assert (await store.catalogue()).live == manifest.release
        assert account.answers(404, "create item") > 1

    with_simulation(work)


def test_a_container_that_never_appears_is_not_waited_for_for_ever() -> None:
    async def work(account: SimulatedAccount) -> None:
        account.misbehave({"kind": "missing", "operation": "create item"})
        began = account.now()
        with pytest.raises(StoreError) as caught:
            await life.publish(account.store(), batches(ROWS), plan=Plan(len(ROWS), 100), about={})
        assert isinstance(caught.value, ContainerMissing)
        assert CONTAINER_VISIBLE_S <= account.now() - began < 2 * CONTAINER_VISIBLE_S

    with_simulation(work)
