"""Clients of Redis that wait long: a busy machine may halt a process for longer than a second."""

from collections.abc import Callable

from hotplate.stores.redis import client, multiplexed, store
from tests.support.service import UNTIL_S

# Source for a process that is to be patient.
INSTALL = """
from tests.support import patience
patience.install(setattr)
"""


def install(replace: Callable[[object, str, object], None]) -> None:
    """Replace the time limits of connecting and of replies to lookups; later stores have them."""
    replace(client, "CONNECT_TIMEOUT_S", UNTIL_S)
    replace(multiplexed, "CONNECT_TIMEOUT_S", UNTIL_S)
    replace(store, "LOOKUP_TIMEOUT_S", UNTIL_S)
