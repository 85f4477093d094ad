"""The lifetime of connections."""

import pytest

from hotplate.stores.concurrency import Lifetime
from hotplate.stores.errors import StoreClosed


async def test_error_of_a_use_during_which_connections_are_closed_is_store_closed() -> None:
    lifetime = Lifetime("cosmos://shop/d")
    with pytest.raises(ValueError, match="malformed"), lifetime.in_use():
        raise ValueError("malformed")
    with pytest.raises(StoreClosed, match="cosmos://shop/d was closed by this process"), lifetime.in_use():
        lifetime.end()
        raise ValueError("the transport is closed")
    with pytest.raises(StoreClosed), lifetime.in_use():
        pass
    lifetime.end()
