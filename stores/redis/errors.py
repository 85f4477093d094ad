"""Errors of redis-py as errors of stores, and errors that only the Redis store raises.

StoreUnavailable
├── ReadElsewhere      a value that another node or a new connection may have; lookups in a cluster read it there
├── PartUnavailable    keys of a node that fails, or of a slot that no node serves
│   └── PartDenied     keys of a node that denies access; AccessDenied, too
└── NotSent
    └── RowsLost       the server has lost rows that it had acknowledged, so the draft or release is not committed

A lookup that finds lost rows raises PartLost instead (`hotplate.stores.errors`): a row is absent, and the state of its
bucket does not prove that it never existed.
"""

import re

from redis import exceptions

from hotplate.stores.errors import (
    AccessDenied,
    NotSent,
    PartUnavailable,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

# How a server refuses SELECT.
NO_SUCH_DATABASE = "DB index is out of range"

# The end of errors of scripts: the digest of the script, and the line of the command.
IN_SCRIPT = re.compile(r" script: [0-9a-f]{40}, on @user_script:\d+\.?")

# How Redis 7.0, and later versions, refuse a command of a script; this error has no code of its own.
REFUSED_IN_SCRIPT = ("The user executing the script ", "ACL failure in script: ")

# How a server in protected mode refuses clients on other machines; redis-py has no exception for it.
PROTECTED = "DENIED "

LACKING = "the Redis user of {where} lacks a permission: {error}; docs/redis.md has the rights of users"

# For each error of redis-py, most specific first, the error of stores and its sentence.
MEANINGS: dict[type[Exception] | tuple[type[Exception], ...], tuple[type[StoreError], str]] = {
    (TimeoutError, exceptions.TimeoutError): (StoreUnavailable, "{where} did not answer in time"),
    exceptions.OutOfMemoryError: (
        StoreFull,
        "{where} has reached its maxmemory; raise it, prune releases and killed publishes, or publish shorter lists",
    ),
    exceptions.ReadOnlyError: (StoreUnavailable, "{where} is a read-only replica; give the URL of the primary"),
    exceptions.AuthenticationError: (
        AccessDenied,
        "{where} does not accept this user and password; check the URL or the secret",
    ),
    exceptions.NoPermissionError: (AccessDenied, LACKING),
    exceptions.BusyLoadingError: (
        StoreUnavailable,
        "{where} is still loading its data; it answers once that is done",
    ),
    exceptions.ResponseError: (StoreUnavailable, "{where} refused: {error}"),
}


class ReadElsewhere(StoreUnavailable):
    """A value may be read over another connection: another node has its slot, or the connection was lost."""


class PartDenied(AccessDenied, PartUnavailable):
    """A node does not accept this user or its password, or the user lacks a right there; other nodes may."""


class RowsLost(NotSent):
    """A server has lost rows that it had acknowledged, or the end of their release, as in a restart.

    Raised while a release is written, sealed or made live, which then has not happened; resume or repeat the publish.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=True)


def translated(error: Exception, where: str) -> StoreError:
    """Return the error of stores for an error of redis-py; *where* names the server."""
    text, _, _ = str(error).partition(", with args beginning with")  # perhaps a password
    text = IN_SCRIPT.sub("", text).removesuffix(".")
    if text == NO_SUCH_DATABASE:
        text = f"{text}; end the URL with the number of a database that it has, as /0"
    if text.startswith(REFUSED_IN_SCRIPT):
        text = f"{text} (`hotplate store doctor` says which)"
        error = exceptions.NoPermissionError(text)
    if text.startswith(PROTECTED):
        return AccessDenied(f"{where} is in protected mode and accepts only local clients; set a password there")
    for known, (kind, sentence) in MEANINGS.items():
        if isinstance(error, known):
            return kind(sentence.format(where=where, error=text))
    return StoreUnavailable(f"{where} cannot be reached: {text}")
