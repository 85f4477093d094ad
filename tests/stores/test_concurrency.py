"""The lifetime of connections."""

import pytest

from hotplate.stores.concurrency import Lifetime
from hotplate.stores.errors import StoreClosed


def fail(lifetime: Lifetime, *, is_closed: bool) -> None:
    """Fail during a use, as an SDK does; with *is_closed*, after its connections were closed."""
    with lifetime.in_use():
        if is_closed:
            lifetime.end()
        raise ValueError("malformed")


async def test_error_of_a_use_that_was_closed_is_store_closed() -> None:
    lifetime = Lifetime("cosmos://shop/d")
    with pytest.raises(ValueError, match="malformed"):
        fail(lifetime, is_closed=False)
    for _ in range(2):  # during a use, and before it
        with pytest.raises(StoreClosed, match="cosmos://shop/d was closed by this process"):
            fail(lifetime, is_closed=True)
