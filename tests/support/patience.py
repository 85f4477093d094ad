"""Clients of Redis that wait long: a busy machine may halt a process for longer than a second."""

from collections.abc import Callable

from hotplate.stores.redis import client, reader, sentinels, server

# Longer than a busy machine halts a process. Not taken from another module of tests: short programs import this one.
LIMIT_S = 60.0

# Source for a process that is to be patient.
INSTALL = """
from tests.support import patience
patience.install(setattr)
"""


def install(replace: Callable[[object, str, object], None]) -> None:
    """Replace the time limits of connecting and of replies; later stores have them."""
    for owner, *names in (
        (client, "COMMAND_TIMEOUT_S", "CONNECT_TIMEOUT_S"),
        (sentinels.Sentinels, "settle_s"),
        (reader, "COMMAND_TIMEOUT_S", "LOOKUP_TIMEOUT_S"),
        (server, "COMMAND_TIMEOUT_S", "CONNECT_TIMEOUT_S", "DISCOVERY_TIMEOUT_S"),
    ):
        for name in names:
            replace(owner, name, LIMIT_S)
