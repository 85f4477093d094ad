"""Rows, pieces and acknowledgements that an account has lost: a scrub finds them, and a repair heals them."""

import pytest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.cosmos.rows import container_of, name_of
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.errors import ReleaseCorrupt
from hotplate.stores.store import Row
from hotplate.stores.transfer import copy, repair
from hotplate.stores.verification import verify
from tests.support.cosmos_simulation import ROWS, SimulatedAccount, simulated
from tests.support.memory_store import MemoryStore
from tests.support.stores import publish, published_rows, ref_of

# As a release that folds visitors in has them: pieces of item factors.
FACTORS = [Row(f"meta:factors-{n}", b"\0" * 100) for n in range(3)]
ALL = sorted([*ROWS[:300], *FACTORS])


async def published(account: SimulatedAccount) -> tuple[CosmosStore, ReleaseId]:
    store = account.store(ru=10_000)
    return store, await publish(store, ALL, 100)


async def lose(account: SimulatedAccount, store: CosmosStore, release: ReleaseId, names: set[str]) -> int:
    """Remove items from the account, as nothing of ours does; return how many."""
    container = account.service.account.databases["d"].containers[container_of(await ref_of(store, release))]
    lost = [document for document in list(container.documents.after()) if document.parsed()["id"] in names]
    for document in lost:
        container.documents.remove(document)
    return len(lost)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("user rows", {name_of(row.key) for row in ROWS[100:150]}),
        ("a piece of the factors", {name_of("meta:factors-1")}),
        ("an acknowledgement in the middle", {"rows-2"}),
        ("the last acknowledgement", {"rows-3"}),
    ],
)
@simulated
async def test_what_an_account_has_lost_is_found_by_a_verify_and_healed_by_a_repair(
    account: SimulatedAccount, what: str, names: set[str]
) -> None:
    store, live = await published(account)
    other = MemoryStore()
    await copy(store, other, live)
    assert await lose(account, store, live, names) == len(names), what
    damaged = account.store(ru=10_000)
    released = await ref_of(damaged, live)
    with pytest.raises(ReleaseCorrupt):
        await verify(damaged, released)
    await repair(damaged, other, live)
    await verify(damaged, await ref_of(damaged, live))
    assert await published_rows(damaged, live) == ALL
