"""Folding in with each engine that the search chooses: trained and published by the command, asked for in every way."""

from collections.abc import Mapping
from pathlib import Path

import pytest

import hotplate
from hotplate.offline.input.sample import sample
from tests.support.command import succeeded
from tests.support.service import UNTIL_S, ids, running

N = 5
OLD, NEW, STRANGE = "p01", "p02", "strange"


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clicks") / "clicks.parquet"
    sample(users=300, items=60).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("engine", "options"),
    [("als", ["--fold-in"]), ("als", []), ("ease", []), ("neighbours", []), ("popularity", [])],
    ids=["als-factors", "als", "ease", "neighbours", "popularity"],
)
def test_weights_and_recency_count_for_each_engine_and_caller(
    clicks: Path, tmp_path: Path, engine: str, options: list[str]
) -> None:
    model = tmp_path / "model"
    store = tmp_path / "store"
    succeeded("train", clicks, "--engine", engine, "--no-tune", "--split", "none", "--out", model)
    succeeded("publish", model, "--store", f"file://{store}", *options)
    with (
        running(store, *options) as service,
        hotplate.Client(service.url, timeout_s=UNTIL_S) as client,
        hotplate.open_sync(f"file://{store}", timeout_s=UNTIL_S, fold_in=bool(options)) as lists,
    ):

        def folded(basket: Mapping[str, float], recency: float, n: int = N) -> list[str]:
            """Return the list for a basket, which client and library agree upon."""
            by_http, by_library = (caller.fold_in(basket, n, recency=recency) for caller in (client, lists))
            assert by_http.source == by_library.source == "fold-in"
            assert by_http.items == by_library.items
            return ids(by_http)

        of_the_new = [item for item in folded({NEW: 1}, 1, N + 1) if item != OLD][:N]
        of_the_old = [item for item in folded({OLD: 1}, 1, N + 1) if item != NEW][:N]
        assert len(of_the_new) == len(of_the_old) == N
        assert of_the_new != of_the_old
        assert folded({OLD: 1, NEW: 1}, 1e-6) == folded({NEW: 1, OLD: 1e-6}, 1) == of_the_new
        assert folded({NEW: 1, OLD: 1}, 1e-6) == of_the_old
        assert folded({OLD: 2, STRANGE: 1, NEW: 3}, 0.5) == folded({NEW: 3, STRANGE: 9, OLD: 0.5}, 1)
