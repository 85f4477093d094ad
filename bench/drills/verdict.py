"""What a drill found, and whether it keeps what is promised: a pure function from one to the other."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.answers import CheckResult
from bench.loadgen.result import Result
from bench.report.text import format_bounds
from bench.stores.setup import EMULATED_SCHEMES, EMULATOR

BEFORE, FAULT, AFTER = PHASES = "before", "fault", "after"

# The share of answers that stay users' own lists if a second tier has them.
OWN_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Phase:
    """The answers of one part of a drill. A time lies between two: from when requests were sent, and were due."""

    due: int
    ok: int
    errors: dict[str, int]
    sources: dict[str, int]
    tiers: dict[str, int]
    p99_us: tuple[float, float]
    late: str = ""
    """What kept the load generator from its pace, where anything did."""

    def share(self, counts: dict[str, int], name: str) -> float:
        """Return the share of answers that were counted by this name."""
        return counts.get(name, 0) / max(1, sum(counts.values()))


def phase_of(results: Sequence[Result]) -> Phase:
    """Add up windows of load that followed each other."""
    times = [np.concatenate([getattr(each, name) for each in results]) for name in ("sent_latencies_s", "latencies_s")]
    least, most = (float(np.percentile(each, 99)) * 1e6 if len(each) else 0.0 for each in times)
    counts = (Counter[str](), Counter[str](), Counter[str]())
    for each in results:
        for total, found in zip(counts, (each.errors, each.seen["source"], each.seen["tier"]), strict=True):
            total.update(found)
    return Phase(
        due=sum(each.due for each in results),
        ok=sum(each.ok for each in results),
        errors=dict(counts[0]),
        sources=dict(counts[1]),
        tiers=dict(counts[2]),
        p99_us=(least, most),
        late=next((each.disturbance for each in results if each.disturbance), ""),
    )


@dataclass(frozen=True, slots=True)
class Movement:
    """A metric while a fault lasted: its value before, the highest that was seen, and when it was first higher."""

    says: str
    metric: str
    before: float
    highest: float
    after_s: float | None


@dataclass(frozen=True, slots=True)
class Observation:
    """All that was seen of one drill."""

    phases: dict[str, Phase]
    compared: CheckResult
    probes: int
    """How often `/readyz` was requested while the fault lasted,"""

    unready: int
    """and how often it did not say ready."""

    movements: tuple[Movement, ...]
    recovered_s: float | None
    """From the end of the fault until all was as before; None if it was not in time."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What an instance promises during a fault."""

    own_share: float
    """Of answers, users' own lists."""

    p99_s: float
    recover_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, what was found of it, and whether that keeps it."""

    promise: str
    kept: bool
    found: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a drill's promises were kept, each by itself and all of them."""

    name: str
    what: str
    tiers: tuple[str, ...]
    checks: tuple[Check, ...]
    observed: Observation

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return all(check.kept for check in self.checks)

    @property
    def sentence(self) -> str:
        """Say in a line what came of it."""
        found = "; ".join(check.found for check in self.checks)
        on = ", ".join(f"{tier}: {EMULATOR}" if tier in EMULATED_SCHEMES else tier for tier in self.tiers)
        return f"{self.name} ({on}): {'kept' if self.kept else 'broken'}: {found}"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "name": self.name,
            "what": self.what,
            "tiers": self.tiers,
            "kept": self.kept,
            "checks": [asdict(check) for check in self.checks],
            "observed": asdict(self.observed),
        }


def judge(observed: Observation, objective: Objective) -> tuple[Check, ...]:
    """Hold what was observed to what is promised."""
    return (
        _answered(observed),
        _right(observed.compared),
        _own(observed.phases[FAULT], objective.own_share),
        _in_time(observed.phases[FAULT], objective.p99_s),
        _ready(observed),
        *map(_moved, observed.movements),
        _recovered(observed.recovered_s, objective.recover_s),
    )


def _answered(observed: Observation) -> Check:
    phases = observed.phases.values()
    due, ok = sum(each.due for each in phases), sum(each.ok for each in phases)
    errors = sum((Counter(each.errors) for each in phases), Counter[str]())
    listed = "".join(f", {count:,} {kind}" for kind, count in errors.items())
    return Check("every request is answered", 0 < due == ok, f"{ok:,} of {due:,} answered{listed}")


def _right(compared: CheckResult) -> Check:
    found = f"{compared.wrong:,} of {compared.compared:,} lists wrong"
    example = f" ({compared.examples[0]})" if compared.examples else ""
    return Check("no answer is another list", compared.compared > 0 == compared.wrong, found + example)


def _own(phase: Phase, least: float) -> Check:
    own = phase.share(phase.sources, "personal")
    tiers = ", ".join(f"{phase.share(phase.tiers, tier):.0%} {tier}" for tier in phase.tiers)
    promise = f"{least:.0%} or more get their own list" if least else "what cannot be read is the popular list"
    return Check(promise, own >= least, f"{own:.1%} own lists from {tiers}")


def _in_time(phase: Phase, p99_s: float) -> Check:
    found = f"p99 {format_bounds(*phase.p99_us)}"
    if phase.p99_us[1] > p99_s * 1e6 and phase.late:
        found += f" ({phase.late})"
    return Check(f"p99 within {p99_s * 1000:g} ms", phase.p99_us[0] <= p99_s * 1e6, found)


def _ready(observed: Observation) -> Check:
    found = f"/readyz 200 {observed.probes - observed.unready} of {observed.probes} times"
    return Check("the service stays ready", observed.unready == 0 < observed.probes, found)


def _moved(seen: Movement) -> Check:
    when = "never" if seen.after_s is None else f"after {seen.after_s:.1f} s"
    return Check(f"{seen.metric} rises", seen.after_s is not None, f"{seen.says} {when}")


def _recovered(recovered_s: float | None, within_s: float) -> Check:
    found = f"not as before within {within_s:g} s" if recovered_s is None else f"as before after {recovered_s:.1f} s"
    return Check(f"all is as before within {within_s:g} s", recovered_s is not None, found)
