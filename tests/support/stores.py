"""Which backends the tests run over; the fixture `open_store` opens them."""

from collections.abc import Callable

import pytest

from stores.catalogue import DraftRef, ReleaseId, ReleaseRef
from stores.store import Store

OpenStore = Callable[[], Store]

COSMOS = ("cosmos+http-rest", "cosmos+https-rest", "cosmos+http-sdk", "cosmos+https-sdk")
on_every_store = pytest.mark.parametrize(
    "open_store", ["memory", "file", "redis", "rediss", "unix", "cosmos+http-rest"], indirect=True
)
"""For tests of thousands of rows, which the slower driver of Cosmos DB needs not write, too."""


def ref(release: ReleaseId) -> ReleaseRef:
    """Return a release as a store is given it."""
    return ReleaseRef(release, release)


def draft_of(release: ReleaseId, writer: str = "writer") -> DraftRef:
    """Return a draft as a store is given it."""
    return DraftRef(release, release, writer)
