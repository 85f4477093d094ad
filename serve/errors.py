"""Errors of the service, and of commands for its events, that an operator must correct; each sentence says how.

If the service can go on, the defect is a `ServiceFinding`, not an exception.

ServiceMisused              options or files that cannot be what was meant: the service does not start
└── KeysUnreadable          a file of keys that cannot be read or understood
EventsFailed                events that could not be shipped or read; nothing is lost
"""

from typing import Literal, NamedTuple

# Where a finding comes from. With one of ERRORS, lists of a store cannot be read, or not all of them: the store, its
# circuit, and damaged values. The others could harm what is served: a store that was restored, memory that cannot be
# locked, a store's set-up, the canary, rows that were damaged when they were loaded; a watched file, and events.
FindingSource = Literal["store", "circuit", "damage", "restored", "set-up", "canary", "rows", "file", "events"]
ERRORS = frozenset[FindingSource]({"store", "circuit", "damage"})


class ServiceFinding(NamedTuple):
    """What is wrong with what a worker serves or is given, in a sentence, while it goes on."""

    source: FindingSource
    sentence: str


class ServiceMisused(Exception):
    """Options that contradict each other, or a file that they name and that cannot be used."""


class KeysUnreadable(ServiceMisused):
    """The file of keys is not there, or not one that this version understands."""


class EventsFailed(Exception):
    """Segments could not be copied or read, here or where they are shipped to."""
