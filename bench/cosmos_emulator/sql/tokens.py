"""Words, strings, numbers and signs of a query, each with its place in the text."""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from bench.cosmos_emulator.errors import bad

PATTERN = re.compile(
    r"""\s*(?:
      (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<parameter>@\w+)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|<>|[=<>()\[\]{}.,:*-])
    | (?P<end>$)
    )""",
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind is the name of its group in the pattern."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def value(self) -> Any:  # noqa: ANN401 -- a string or a number
        """Return the constant that a string or a number stands for."""
        if self.kind == "number":
            return float(self.text) if set(self.text) & set(".eE") else int(self.text)
        inner = self.text[1:-1]
        if self.text[0] == "'":
            inner = inner.replace("\\'", "'").replace('"', '\\"')
        try:
            return orjson.loads(f'"{inner}"')
        except orjson.JSONDecodeError:
            raise bad(f"the string at {self.start} of the query cannot be read") from None


def tokens(text: str) -> list[Token]:
    """Cut a query up; the last token is the end."""
    found = list[Token]()
    place = 0
    while True:
        match = PATTERN.match(text, place)
        if match is None:
            raise bad(f"the query cannot be read at {place}: {text[place : place + 20].strip()!r}")
        kind = str(match.lastgroup)
        found.append(Token(kind, match[kind], match.start(kind), match.end(kind)))
        if kind == "end":
            return found
        place = match.end()
