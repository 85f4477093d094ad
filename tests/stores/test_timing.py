"""Retries of steps of a store."""

import time

import pytest

from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.timing import Retrier


async def test_step_is_retried_only_while_its_store_is_down() -> None:
    lost = StoreUnavailable("rows are gone")
    lost.permanent = True
    failures = [StoreUnavailable("down"), lost]
    taken = list[str]()

    async def step() -> None:
        taken.append("step")
        raise failures.pop(0)

    with pytest.raises(StoreUnavailable, match="rows are gone"):
        await Retrier(time.monotonic, for_s=30.0).call(step)
    assert len(taken) == 2
    failures += [StoreUnavailable("down"), StoreUnavailable("not tried again")]
    with pytest.raises(StoreUnavailable, match="down"):
        await Retrier(time.monotonic, for_s=0.0).call(step)
