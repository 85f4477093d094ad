"""The cells of a search: those that are new, and those within bounds."""

from dataclasses import replace

import pytest

from hotplate.offline.train.als import ALSParams
from hotplate.offline.train.ease import EASEParams
from hotplate.offline.train.engine import Engine, engine_of
from hotplate.offline.train.neighbours import NeighbourParams
from hotplate.offline.train.popularity import PopularityParams, Recency
from hotplate.offline.train.tuning import beyond, default_cells, more_recency

ALS = ALSParams()


def als(factors: int, regularization: float, alpha: float) -> ALSParams:
    return ALSParams(factors, regularization, alpha)


@pytest.mark.parametrize("engine", ["als", "ease", "neighbours", "popularity", None])
def test_the_usual_cells_are_few_and_of_the_engine_wanted(engine: Engine | None) -> None:
    cells = default_cells(ALS, 5000, engine)
    assert len(set(cells)) == len(cells) <= 16
    assert {engine_of(cell) for cell in cells} == ({engine} if engine else {"als", "ease", "neighbours", "popularity"})
    if engine == "neighbours":
        assert NeighbourParams("rp3beta", 100) in cells
    if engine == "als":
        assert cells[0] == ALS
        assert max(cell.factors for cell in cells if isinstance(cell, ALSParams)) == 512


def test_few_items_need_neither_many_factors_nor_many_neighbours() -> None:
    cells = default_cells(ALSParams(factors=8), 12)
    assert all(cell.factors <= 12 for cell in cells if isinstance(cell, ALSParams))
    assert all(cell.neighbours <= 12 for cell in cells if isinstance(cell, NeighbourParams))
    assert NeighbourParams(neighbours=5) in default_cells(ALS, 3)


def test_the_grid_goes_on_where_the_best_is_at_its_edge() -> None:
    assert beyond([als(128, 150, 20), als(256, 30, 4)], 900) == [
        als(256, 150, 20),
        als(512, 150, 20),
        als(128, 300, 40),
    ]
    assert beyond([als(256, 10, 1.3), als(256, 30, 4)], 900) == [als(512, 10, 1.3), als(256, 5, 0.65)]
    assert beyond([als(512, 60, 6), als(128, 150, 20), als(128, 10, 1.3)], 900) == []
    assert beyond([als(16, 60, 6), als(128, 150, 20), als(128, 10, 1.3)], 20) == []
    low, middle, high = (EASEParams(value) for value in (6.0, 20.0, 60.0))
    assert beyond([high, low, middle], 900) == [EASEParams(180.0)]
    assert beyond([low, middle], 900) == [EASEParams(2.0)]
    assert beyond([middle, low, high], 900) == []
    five, twenty, many = (NeighbourParams(neighbours=number) for number in (5, 20, 100))
    assert beyond([many, five, twenty], 300) == [NeighbourParams(neighbours=300)]
    assert beyond([five, many], 300) == [NeighbourParams(neighbours=2)]
    assert beyond([twenty, five, many], 300) == []
    assert beyond([PopularityParams()], 300) == []


def test_the_powers_of_random_walks_go_on_around_the_best() -> None:
    walk = NeighbourParams("rp3beta", 100)
    around = [replace(walk, walk_alpha=alpha) for alpha in (0.8, 0.6)]
    around += [replace(walk, walk_beta=beta) for beta in (0.4, 0.2)]
    tried = [walk, replace(walk, neighbours=20), replace(walk, neighbours=500)]
    assert beyond(tried, 900) == around
    assert beyond([*tried, *around], 900) == []
    edge = replace(walk, walk_alpha=0.1, walk_beta=0.0)
    powers = [(each.walk_alpha, each.walk_beta) for each in beyond([edge, *tried], 900) if isinstance(each, type(walk))]
    assert powers == [(0.2, 0.0), (0.1, 0.1)]


def test_recencies_go_on_around_the_best_within_bounds() -> None:
    plain = EASEParams()
    first = more_recency(plain, {})
    assert first == [EASEParams(recency=Recency(2.0, 1.0)), EASEParams(recency=Recency(8.0, 1.0))]
    second = more_recency(plain, dict(zip(first, (0.1, 0.2), strict=True)))
    assert second == [EASEParams(recency=Recency(*each)) for each in ((16.0, 1.0), (4.0, 1.0), (8.0, 2.0), (8.0, 0.5))]
    assert more_recency(PopularityParams(), {PopularityParams(512.0): 1.0}) == [PopularityParams(256.0)]
