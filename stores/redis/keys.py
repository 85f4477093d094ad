"""The names of everything that a deployment keeps in Redis, all under its prefix.

PREFIX:catalogue                  the catalogue, as JSON
PREFIX:changes                    the channel on which each change of the catalogue is announced
PREFIX:INCARNATION:KIND:ID        one row, a plain string without an expiry: a draft's lease decides, not a timer
PREFIX:INCARNATION:@state         `draft` or `sealed`; a release exists as long as this key does
PREFIX:INCARNATION:@keys          a list: the keys of each acknowledged batch, packed by `stores.keys`
PREFIX:INCARNATION:@meta          the same for `meta` rows, which may come at any time
PREFIX:INCARNATION:@points        a hash: the last acknowledged key of each part
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """The names under one prefix; a release's are given by its incarnation."""

    prefix: str

    @property
    def catalogue(self) -> str:
        """The one record of control state."""
        return f"{self.prefix}:catalogue"

    @property
    def changes(self) -> str:
        """The channel on which each swap is announced."""
        return f"{self.prefix}:changes"

    def head(self, incarnation: str) -> str:
        """What stands before a row's own key."""
        return f"{self.prefix}:{incarnation}:"

    def state(self, incarnation: str) -> str:
        """The key that says that a release exists, and whether it is sealed."""
        return f"{self.prefix}:{incarnation}:@state"

    def points(self, incarnation: str) -> str:
        """The hash of resume points, by part."""
        return f"{self.prefix}:{incarnation}:@points"

    def lists(self, incarnation: str) -> tuple[str, str]:
        """The two lists of packed keys: of rows, and of `meta` rows."""
        return f"{self.prefix}:{incarnation}:@keys", f"{self.prefix}:{incarnation}:@meta"
