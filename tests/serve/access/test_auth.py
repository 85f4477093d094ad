"""A client's rate, which all workers share, however unevenly its requests reach them."""

from collections import Counter
from pathlib import Path

import pytest

from hotplate.serve.access.auth import CELLS, Guard, buckets_of
from hotplate.serve.access.keys import KeyHolder, create
from hotplate.serve.problems import Problem
from hotplate.serve.shared_memory import shared_floats
from tests.support.service import running

RATE = 200.0


def client(name: str, rate: float | None = RATE) -> KeyHolder:
    return KeyHolder(name, ("read",), rate)


def test_rate_limit_is_shared_by_all_workers(folder: Path) -> None:
    keys = folder.parent / "keys.json"
    key = create(keys, "web", ["read"], 0.01).key
    with running(folder, "--keys", str(keys), "--workers", "4") as service:
        service.until_states("ready", 4)
        statuses = Counter(service.get("/v1/popular", X_API_Key=key).status for _ in range(40))
    assert statuses == {200: 1, 429: 39}


def test_buckets_are_per_client_and_consistent_across_workers_in_any_order() -> None:
    rates = shared_floats(CELLS)
    clients = [client(f"c{n}", 1.0) for n in range(50)]
    first = buckets_of(clients, rates)
    second = buckets_of(reversed(clients), rates)
    for client_id in clients:
        assert first[client_id.name].take() == 0.0
        assert second[client_id.name].take() > 0.0


def test_client_with_a_new_rate_starts_with_a_full_bucket() -> None:
    rates = shared_floats(CELLS)
    slow = buckets_of([client("c", 0.02)], rates)["c"]
    assert slow.take() == 0.0
    assert slow.take() > 0.0
    assert buckets_of([client("c", 1000.0)], rates)["c"].take() == 0.0


async def test_both_keys_of_a_client_share_its_rate(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    primary, secondary = (create(keys, "slow", scopes, rate).key for scopes, rate in ((["read"], 0.1), ([], None)))
    guard = Guard(keys, anonymous=frozenset())
    await guard.admit({"X-API-Key": primary}, "read")
    with pytest.raises(Problem, match="all the requests"):
        await guard.admit({"X-API-Key": secondary}, "read")
