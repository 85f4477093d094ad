"""The generation of a process's policies: callers, the deny-list, followed releases, draining.

Whatever is derived from them, such as what the fast lane keeps, is current while `POLICIES.number` is the same object.
"""

from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

T = TypeVar("T")


class Generation:
    """A number that is raised by each change, also from other threads."""

    __slots__ = ("_numbers", "number")

    def __init__(self) -> None:
        self._numbers = count(1)
        self.number = 0

    def change(self) -> None:
        """Raise the number, after the change."""
        self.number = next(self._numbers)


POLICIES = Generation()


class Policy(Generic[T]):
    """An attribute of an object whose assignment is a new generation; reading it is as fast as without."""

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = name

    def __set__(self, instance: object, value: T) -> None:
        instance.__dict__[self._name] = value
        POLICIES.change()

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type[object]) -> T: ...
