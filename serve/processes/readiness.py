"""Readiness: whether a service, or one worker of it, can answer lists."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from hotplate.serve.errors import ServiceFinding
from hotplate.serve.generation import Policy
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.tier import Tier
from hotplate.serve.watched import WatchedFiles

if TYPE_CHECKING:
    from hotplate.serve.events.writer import EventWriter


class Status(StrEnum):
    """The status of a service, of a process, or of the tiers of a process."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    """Lists are answered, but some from another tier or from popular lists, or a file or events have a problem."""

    NOT_READY = "not ready"
    DRAINING = "draining"
    SILENT = "silent"
    """The process has not reported for too long."""

    @property
    def can_answer(self) -> bool:
        """Whether requests may be sent here."""
        return self in {Status.READY, Status.DEGRADED}

    @property
    def probe_code(self) -> int:
        """The HTTP status of a readiness probe."""
        return 200 if self.can_answer else 503


class Readiness(NamedTuple):
    """Whether a worker can answer lists."""

    status: Status
    findings: Sequence[ServiceFinding]
    """Problems of watched files and of event logging, because of which a ready worker is degraded."""


class WorkerReadiness:
    """Decides whether a worker can answer lists."""

    draining = Policy[bool]()
    """Whether the worker stops."""

    def __init__(
        self, reader: TieredReader, *, watched: Sequence[WatchedFiles] = (), writer: "EventWriter | None" = None
    ) -> None:
        """*watched* are followed files, *writer* is that of events."""
        self._reader = reader
        self._watched = watched
        self._writer = writer
        self.draining = False

    def drain(self) -> None:
        """Report not ready from now on, and close connections after their next answer."""
        self.draining = True

    def check(self) -> Readiness:
        """Return whether the worker can answer lists now, and the problems because of which a ready one is degraded.

        These are problems of watched files, such as keys, and of the writing of events.
        """
        findings = [ServiceFinding("file", files.warning) for files in self._watched if files.warning]
        if self._writer is not None and self._writer.warning:
            findings.append(ServiceFinding("events", self._writer.warning))

        status = status_of_tiers(self._reader.tiers)
        if self.draining:
            status = Status.DRAINING
        elif status is Status.NOT_READY and self._reader.kept is not None:
            status = Status.DEGRADED  # kept popular lists are answered
        elif status is Status.READY and findings:
            status = Status.DEGRADED
        return Readiness(status, findings)


def status_of_tiers(tiers: Sequence[Tier]) -> Status:
    """Return READY if all tiers can be read, DEGRADED if some serve a release, and otherwise NOT_READY."""
    if not any(tier.follower.live for tier in tiers):
        return Status.NOT_READY
    are_whole = all(tier.follower.live and tier.error is None for tier in tiers)
    return Status.READY if are_whole else Status.DEGRADED
