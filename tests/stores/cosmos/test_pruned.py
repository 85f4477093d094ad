"""A release is reported as not found if another process deletes its container, before any request of a verb."""

from collections.abc import Awaitable, Callable

import pytest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.cosmos.items import container_of
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.store import Plan, Row
from tests.support.cosmos_simulation import SimulatedAccount, simulated
from tests.support.stores import allow_erasure, draft_of, release_ref, scan_rows

R = ReleaseId("20261120T064200Z-aaaa")
DRAFT = draft_of(R)
RELEASE = release_ref(R)
ROWS = [Row("popular:", b"p"), Row("user:1", b"1")]

Verb = Callable[[CosmosStore], Awaitable[object]]

ON_DRAFTS: dict[str, Verb] = {
    "create": lambda store: store.create(DRAFT._replace(writer="another"), Plan(1, 1)),
    "put": lambda store: store.put(DRAFT, ROWS),
    "put in a part": lambda store: store.put(DRAFT, ROWS, 1),
    "resume_point": lambda store: store.resume_point(DRAFT),
    "seal": lambda store: store.seal(DRAFT),
}
ON_RELEASES: dict[str, Verb] = {
    "get_many": lambda store: store.get_many(RELEASE, ["user:1"]),
    "lookup": lambda store: store.get_many(RELEASE, ["user:1"], timeout_s=1.0),
    "scan": lambda store: scan_rows(store, R),
    "erase_rows": lambda store: store.erase_rows(RELEASE, ["user:1"], allow_erasure),
    "prepare": lambda store: store.prepare(RELEASE),
    "scale_down": lambda store: store.scale_down(RELEASE),
}


@pytest.mark.parametrize("verb", [*ON_DRAFTS, *ON_RELEASES])
@simulated
async def test_release_deleted_during_a_verb_is_not_found(account: SimulatedAccount, verb: str) -> None:
    """The container is deleted before the first request about it, then before the second, until there are no more."""
    act = (ON_DRAFTS | ON_RELEASES)[verb]
    number = 0
    while account.deletes_before is None:
        maker = account.store()
        await maker.create(DRAFT, Plan(1, 1))
        if verb in ON_RELEASES:
            await maker.put(DRAFT, ROWS)
            await maker.seal(DRAFT)

        number += 1
        account.deletes_before = (container_of(DRAFT), number)
        is_reported = False
        try:
            await act(account.store())
        except ReleaseNotFound:
            is_reported = True
        is_deleted = account.deletes_before is None
        assert is_reported == is_deleted or verb == "create"  # which creates the container again
    assert number > 1
