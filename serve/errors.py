"""Errors that an operator must correct.

ServiceMisused              options or files that cannot be used
└── KeysUnreadable          a file of keys that cannot be read or parsed
EventsFailed                events could not be shipped or read; nothing is lost
"""

from typing import Literal, NamedTuple

# Findings of ERRORS mean that lists cannot be read.
FindingSource = Literal["store", "circuit", "damage", "restored", "canary", "erased users", "rows", "file", "events"]
ERRORS = frozenset[FindingSource]({"store", "circuit", "damage"})


class ServiceFinding(NamedTuple):
    """A problem that does not stop the service."""

    source: FindingSource
    sentence: str


class ServiceMisused(Exception):
    """Contradicting options, or an unusable file; the service does not start."""


class KeysUnreadable(ServiceMisused):
    """The file of keys is missing, or this version cannot parse it."""


class EventsFailed(Exception):
    """Segments could not be copied or read, at either end."""
