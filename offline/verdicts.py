"""Verdicts of gates, as manifests keep them; reading them needs no packages for training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import msgspec

from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.manifest import Manifest


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """The verdict of one gate; *note* explains a missing measurement."""

    gate: str
    measured: float | None
    bound: float
    at_most: bool
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        if self.measured is None:
            return f"gate {self.gate}: {'passed' if self.passed else 'it cannot be judged'}, as {self.note}"
        measured = f"{self.measured:.4g}"
        bound = f"{self.bound:.4g}"
        if measured == bound and self.measured != self.bound:
            measured = str(self.measured)
            bound = str(self.bound)
        beyond = "above" if self.at_most else "below"
        side = f"not {beyond}" if self.passed else beyond
        note = f" ({self.note})" if self.note else ""
        return f"gate {self.gate}: {measured} is {side} {bound}{note}"


def failures(verdicts: Sequence[GateVerdict]) -> str:
    """Describe the failed verdicts; empty if all passed."""
    return "; ".join(str(verdict) for verdict in verdicts if not verdict.passed)


class GateRecord(NamedTuple):
    """What a manifest says of its gates; *forced* if the release may go live despite failed ones."""

    forced: bool
    verdicts: list[GateVerdict]

    @property
    def failures(self) -> str:
        """The failed verdicts in words, empty if the release may go live."""
        return "" if self.forced else failures(self.verdicts)


def record(verdicts: Sequence[GateVerdict], live: ReleaseRef | None, *, forced: bool) -> dict[str, Any]:
    """Return the entry of the manifest."""
    against = None if live is None else live.id
    return {"forced": forced, "against": against, "verdicts": [asdict(verdict) for verdict in verdicts]}


def recorded(manifest: Manifest) -> GateRecord:
    """Decode the entry of the manifest."""
    entry = manifest.about.get("gates") or {"forced": False, "verdicts": []}
    return GateRecord(entry["forced"], msgspec.convert(entry["verdicts"], list[GateVerdict]))
