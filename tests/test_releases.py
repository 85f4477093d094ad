"""The functions that take a store: arguments that they refuse."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import hotplate
from tests.support.service import a_list, publish_lists


@pytest.mark.parametrize(
    "options", [{"keep": -1}, {"grace_s": -1.0}, {"grace_s": float("nan")}, {"keep_ready_s": -1.0}], ids=str
)
async def test_prune_erases_nothing_by_a_negative_number(tmp_path: Path, options: dict[str, float]) -> None:
    store = f"file://{tmp_path}/store"
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
        hotplate.verify(f"file://{tmp_path}/store", rows_per_s=rate)


@pytest.mark.parametrize("store", [None, Path("/var/lib/hotplate"), b"redis://:secret@localhost"], ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        hotplate.connect,
        hotplate.open_sync,
        partial(hotplate.activate, release="r"),
        hotplate.rollback,
        hotplate.prune,
        hotplate.verify,
        partial(hotplate.copy, "file:///nowhere"),
        partial(hotplate.copy, target="file:///nowhere"),
    ],
)
def test_a_store_must_be_a_url(call: Callable[[object], object], store: object) -> None:
    kind = type(store).__name__
    with pytest.raises(hotplate.StoreMisused, match=f"the URL of a store is a string, .* not of the type {kind}$"):
        call(store)
