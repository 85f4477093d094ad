"""A place in a query's tokens that only moves on, and the refusal of what it cannot step over."""

from collections.abc import Callable
from typing import TypeVar

from bench.cosmos_emulator.errors import Refused, bad
from bench.cosmos_emulator.sql.tokens import Token, tokens

MOST_DEPTH = 40
NO_ALIAS = ("WHERE", "ORDER", "OFFSET", "AS", "JOIN")
T = TypeVar("T")


class Cursor:
    """Reads tokens one after the other; lives as long as one text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._tokens = tokens(text)
        self._place = 0
        self._depth = 0
        self.alias = self._find_alias()

    def _find_alias(self) -> str:
        for place, token in enumerate(self._tokens):
            if token.kind == "word" and token.text.upper() == "FROM":
                source, after = self._tokens[place + 1], self._tokens[min(place + 2, len(self._tokens) - 1)]
                renamed = after.kind == "word" and after.text.upper() not in NO_ALIAS
                return after.text if renamed else source.text
        return "c"

    @property
    def next(self) -> Token:
        """Return the token that stands next."""
        return self._tokens[self._place]

    def step(self) -> None:
        """Step over whatever stands next."""
        self._place += 1

    def since(self, start: int) -> str:
        """Return the text from a place to the end of the token before this one."""
        return self.text[start : self._tokens[self._place - 1].end]

    def unknown(self) -> Refused:
        """Refuse what stands next."""
        token = self.next
        return bad(
            f"this emulation does not understand the query at {token.start}: {self.text[token.start :][:30]!r}; "
            "it speaks only the simple queries that its documentation lists"
        )

    def takes(self, word: str) -> bool:
        """Step over *word* where it stands next."""
        token = self.next
        if token.kind in ("word", "sign") and token.text.upper() == word:
            self._place += 1
            return True
        return False

    def must(self, word: str) -> None:
        """Step over *word*; refuses anything else."""
        if not self.takes(word):
            raise self.unknown()

    def take(self, kind: str) -> Token:
        """Step over a token of *kind*, and return it; refuses any other."""
        token = self.next
        if token.kind != kind:
            raise self.unknown()
        self._place += 1
        return token

    def finish(self) -> None:
        """Refuse anything that is left."""
        if self.next.kind != "end":
            raise self.unknown()

    def nested(self, read: Callable[["Cursor"], T]) -> T:
        """Read what stands inside of something else; refuses what is too deep."""
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise bad(f"the query nests deeper than {MOST_DEPTH}")
        found = read(self)
        self._depth -= 1
        return found
