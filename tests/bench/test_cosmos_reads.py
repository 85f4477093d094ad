"""The figures of reading from Cosmos DB: each client makes its own, and the driver over the wire costs the least."""

from bench.micro import cosmos_reads
from bench.micro.rounds import Effort, Figure


def test_every_client_reads_and_ours_costs_less() -> None:
    found = cosmos_reads.measure(Effort(rounds=1, users=1, round_s=0.1))
    told = {one.name: one for one in found if isinstance(one, Figure)}
    assert len(told) == len(found) == 14
    rates = [one.median for one in told.values() if one.unit == "reads/s"]
    assert len(rates) == 5
    assert min(rates) > 0
    assert told["cosmos reads, hotplate / azure-cosmos as it comes: CPU"].median < 1
