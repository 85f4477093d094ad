"""What Cosmos DB or the way to it says, as one of our errors; the one place where statuses end."""

from typing import Literal

from stores.errors import StoreError, StoreThrottled, StoreUnavailable

Kind = Literal[
    "throttled", "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused"
]
"""What went wrong with one attempt, as metrics name it."""


class ContainerMissing(StoreError):
    """The account has no such container, or no such database; the caller knows what that means."""


class CosmosUnavailable(StoreUnavailable):
    """One attempt failed; `kind` says how."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


class CosmosThrottled(StoreThrottled):
    """The partition's second is spent, or the account's metadata limit."""

    kind: Kind = "throttled"
