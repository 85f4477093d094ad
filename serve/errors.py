"""The errors of a service, and of what is done with its events, that its operator must correct; each sentence says how.

ServiceMisused              options or files that cannot be what was meant: the service does not start
└── KeysUnreadable          a file of keys that cannot be read or understood
EventsFailed                events that could not be shipped or read; nothing is lost
"""


class ServiceMisused(Exception):
    """Options that contradict each other, or a file that they name and that cannot be used."""


class KeysUnreadable(ServiceMisused):
    """The file of keys is not there, or not one that this version understands."""


class EventsFailed(Exception):
    """Segments could not be copied or read, here or where they are shipped to."""
