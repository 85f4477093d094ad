"""The names of everything that a deployment keeps in Redis, all under its prefix.

PREFIX:catalogue              the catalogue, as JSON
PREFIX:changes                the channel that says that it changed
PREFIX:RELEASE:KIND:ID        one row, a plain string without an expiry: a draft's lease decides, not a timer
PREFIX:RELEASE:@state         `draft` or `sealed`; a release is there as long as this is
PREFIX:RELEASE:@keys          a list: the keys of each acknowledged batch, packed by `stores.keylist`
PREFIX:RELEASE:@meta          the same for `meta` rows, which may come at any time
"""

from dataclasses import dataclass

from stores.catalogue import ReleaseId


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under one prefix."""

    prefix: str

    @property
    def catalogue(self) -> str:
        """The one record of control state."""
        return f"{self.prefix}:catalogue"

    @property
    def changes(self) -> str:
        """The channel on which each swap is announced."""
        return f"{self.prefix}:changes"

    def head(self, release: ReleaseId) -> str:
        """What stands before a row's own key."""
        return f"{self.prefix}:{release}:"

    def state(self, release: ReleaseId) -> str:
        """Where it says that a release is there, and whether it is sealed."""
        return f"{self.prefix}:{release}:@state"

    def lists(self, release: ReleaseId) -> tuple[str, str]:
        """The two lists of packed keys: of rows, and of `meta` rows."""
        return f"{self.prefix}:{release}:@keys", f"{self.prefix}:{release}:@meta"
