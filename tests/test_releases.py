"""The functions for releases of a store: numbers that they refuse."""

from pathlib import Path

import pytest

import hotplate
from tests.support.service import a_list, publish_lists


@pytest.mark.parametrize(
    "options", [{"keep": -1}, {"grace_s": -1.0}, {"grace_s": float("nan")}, {"keep_ready_s": -1.0}], ids=str
)
async def test_prune_erases_nothing_by_a_negative_number(tmp_path: Path, options: dict[str, float]) -> None:
    store = f"file://{tmp_path / 'store'}"
    for _ in range(3):
        await publish_lists(tmp_path / "store", {"user:1": a_list("a")})
    before = await hotplate.connect(store).catalogue()
    (name,) = options
    with pytest.raises(hotplate.StoreMisused, match=f"{name} must be at least 0, not"):
        hotplate.prune(store, **options)  # type: ignore[arg-type]  # of either type
    assert (await hotplate.connect(store).catalogue()).releases == before.releases


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
async def test_verify_refuses_a_rate_that_is_not_above_zero(tmp_path: Path, rate: float) -> None:
    await publish_lists(tmp_path / "store", {"user:1": a_list("a")})
    with pytest.raises(hotplate.StoreMisused, match="rows_per_s must be above 0"):
        hotplate.verify(f"file://{tmp_path / 'store'}", rows_per_s=rate)
