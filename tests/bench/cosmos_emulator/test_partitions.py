"""Partitions and their budgets on a clock that the test holds: admissions are exact, waits are enough."""

import random
from typing import Any

import pytest
from azure.cosmos import PartitionKey

from hotplate.bench.cosmos_emulator.messages import HttpError
from hotplate.bench.cosmos_emulator.partitions import Partitions, effective_key, encode
from hotplate.stores.cosmos.url import Throughput, minimum_ru
from tests.support.soak import in_soak

START = 1000.0


def admitted(partitions: Partitions, keys: list[str], charge_ru: float, seconds: int, per_second: int) -> float:
    """Send requests at even times for random keys, more than are provisioned; returns the admitted RU."""
    chosen = random.Random(7)
    total = 0.0
    for count in range(seconds * per_second):
        now = START + count / per_second
        partition = partitions.of(encode(chosen.choice(keys)))
        try:
            partition.admit(now, 0)
        except HttpError:
            continue
        partition.charge(now, charge_ru)
        total += charge_ru
    return total


@pytest.mark.parametrize("ru", [400, 1_000, in_soak(4_000), 11_000])
@pytest.mark.parametrize(("charge_ru", "seconds"), [in_soak(1.0, 3), (1.14, 3), (10.8, 10), (145.9, 100)])
def test_provisioned_throughput_is_admitted(ru: int, charge_ru: float, seconds: int) -> None:
    partitions = Partitions(Throughput(ru), 1)
    keys = [f"user-{n}" for n in range(997)]
    per_second = int(ru / charge_ru * 1.5) + 10
    total = admitted(partitions, keys, charge_ru, seconds, per_second)
    assert total == pytest.approx(seconds * ru, rel=0.01)


def test_budget_is_refilled_after_the_clock_was_set_back() -> None:
    """No request was admitted until the clock had caught up, with retry-after of as many minutes."""
    partition = Partitions(Throughput(400), 1).all[0]
    partition.charge(START, 400)
    set_back = START - 100
    with pytest.raises(HttpError) as error:
        partition.admit(set_back, 0)
    assert float(error.value.headers["x-ms-retry-after-ms"]) <= 1000
    partition.admit(set_back + 1, 0)


def test_a_hot_key_gets_the_share_of_its_partition() -> None:
    partitions = Partitions(Throughput(11_000), 1)
    assert len(partitions.all) == 2
    total = admitted(partitions, ["the hot one"], 1.0, 3, 11_000)
    assert total == pytest.approx(3 * 5_500, rel=0.01)


def test_full_partitions_split_and_never_merge() -> None:
    partitions = Partitions(Throughput(400), 1)
    partitions.provision(Throughput(10_000))
    assert [partition.id for partition in partitions.all] == ["0"]
    partitions.provision(Throughput(20_000))
    assert [(partition.id, partition.parents) for partition in partitions.all] == [("1", ("0",)), ("2", ("0",))]
    partitions.provision(Throughput(400))
    assert [partition.budgets[0].rate for partition in partitions.all] == [200, 200]
    with pytest.raises(HttpError) as error:
        partitions.with_id("0")
    assert error.value.status == 410


def test_keys_spread_evenly_over_ranges_that_have_no_gap() -> None:
    partitions = Partitions(Throughput(50_000), 1)
    assert partitions.all[0].minimum == ""
    assert partitions.all[-1].maximum == "FF"
    for left, right in zip(partitions.all, partitions.all[1:], strict=False):
        assert left.maximum == right.minimum
    held = [partitions.of(encode(f"user-{n}")).id for n in range(9000)]
    assert all(850 < held.count(partition.id) < 1150 for partition in partitions.all)


def test_partition_hashes_match_the_sdk() -> None:
    chosen = random.Random(3)
    values: list[Any] = [None, True, False, 0, 1, -1, 1.5, -2.25, 1e300, 2**31, 2**40, "x", "ü" * 60]
    values += ["a" * length for length in range(1, 110)]
    values += [chosen.uniform(-1e9, 1e9) for _ in range(50)]
    definition = PartitionKey("/id", version=2)
    for value in values:
        assert effective_key(value) == str(definition._get_effective_partition_key_string([value])).upper()
    assert effective_key({}) == "11622DAA78F835834610ABE56EFF5CB5", "the SDK's, of an item without its partition key"


def test_the_least_throughput_follows_from_history_and_size() -> None:
    for autoscale, highest_ru, stored_gb, least in (
        (False, 400, 0, 400), (False, 100_000, 0, 1_000), (False, 400, 900, 900), (True, 50_000, 0, 5_000),
    ):  # fmt: skip
        stored = stored_gb * 1000**3
        assert minimum_ru(highest_ru, stored, autoscale=autoscale) == least
