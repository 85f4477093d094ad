"""The figures of the service over Cosmos DB: each store is asked, and the difference is taken round by round."""

import pytest

from bench.micro import cosmos_service
from bench.micro.rounds import Effort, Figure, Sample


def test_what_cosmos_takes_beyond_files_is_taken_round_by_round() -> None:
    taken = {
        cosmos_service.FILES: [Sample(20_000, 30.0), Sample(10_000, 60.0)],
        cosmos_service.PLAIN: [Sample(10_000, 50.0), Sample(9_000, 90.0)],
        cosmos_service.SECURE: [Sample(10_000, 60.0), Sample(9_000, 100.0)],
    }
    found = {figure.name: figure.values for figure in cosmos_service.outcomes(taken)}
    assert found["GET, cosmos+http:// - file://: CPU"] == [20.0, 30.0]
    assert found["GET, cosmos+https:// - file://: CPU"] == [30.0, 40.0]
    assert found["GET, cosmos+http://: rate"] == [10_000, 9_000]


@pytest.mark.timeout(120)
def test_each_store_is_asked_and_gives_users_their_own_lists() -> None:
    figures = cosmos_service.measure(Effort(rounds=1, users=1000, round_s=0.3))
    assert len(figures) == 8
    assert all(isinstance(figure, Figure) for figure in figures)
