"""Errors of the service and of commands for its events that an operator must correct; each message says how.

ServiceMisused              options or files that cannot be used: the service does not start
└── KeysUnreadable          a file of keys that cannot be read or parsed
EventsFailed                events could not be shipped or read; nothing is lost

A defect that does not stop the service is a `ServiceFinding`.
"""

from typing import Literal, NamedTuple

# A finding with one of the sources in ERRORS means that some or all lists of a store cannot be read.
FindingSource = Literal["store", "circuit", "damage", "restored", "set-up", "canary", "rows", "file", "events"]
ERRORS = frozenset[FindingSource]({"store", "circuit", "damage"})


class ServiceFinding(NamedTuple):
    """A problem that a worker reports while it goes on serving."""

    source: FindingSource
    sentence: str


class ServiceMisused(Exception):
    """Contradicting options, or a file that an option names and that cannot be used."""


class KeysUnreadable(ServiceMisused):
    """The file of keys is missing, or this version cannot parse it."""


class EventsFailed(Exception):
    """Segments could not be copied or read, at either end."""
