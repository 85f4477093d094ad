"""What a drill found, and whether it keeps what is promised: a pure function from one to the other."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hotplate.bench.answers import CheckResult
from hotplate.bench.loadgen.result import Result, merged, spread
from hotplate.bench.report.text import format_bounds
from hotplate.bench.stores.setup import EMULATED_SCHEMES, EMULATOR

BEFORE, FAULT, AFTER = PHASES = "before", "fault", "after"


@dataclass(frozen=True, slots=True)
class Phase:
    """The answers of one part of a drill. Its p99 lies between two: from when requests were sent, and were due."""

    due: int
    ok: int
    errors: Mapping[str, int]
    sources: Mapping[str, int]
    tiers: Mapping[str, int]
    p99_us: tuple[float, float]
    late: str = ""
    """What kept the load generator from its pace, if something did."""


def phase_of(results: Sequence[Result]) -> Phase:
    """Add up windows of load that followed each other."""
    whole = merged(results)
    least, most = (
        found.p99 if (found := spread(each)) else 0.0 for each in (whole.sent_latencies_s, whole.latencies_s)
    )
    sources, tiers = whole.seen["source"], whole.seen["tier"]
    return Phase(whole.due, whole.ok, whole.errors, sources, tiers, (least, most), whole.disturbance)


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
    """All that was seen of one drill: `unready` of `probes` requests of `/readyz` during the fault were not ready."""

    phases: dict[str, Phase]
    compared: CheckResult
    probes: int
    unready: int
    movements: tuple[Movement, ...]
    recovered_s: float | None
    """From the end of the fault until all was as before; None if it was not in time."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What an instance promises: the share of users' own lists and the p99 during a fault, and the time after it."""

    own_share: float
    p99_s: float
    recover_s: float


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, whether it was kept, and what was found."""

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
        """Say in a line how it went."""
        found = "; ".join(check.found for check in self.checks)
        on = ", ".join(f"{tier}: {EMULATOR}" if tier in EMULATED_SCHEMES else tier for tier in self.tiers)
        return f"{self.name} ({on}): {'kept' if self.kept else 'broken'}: {found}"

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self) | {"kept": self.kept}


def judge(observed: Observation, objective: Objective) -> tuple[Check, ...]:
    """Compare what was observed with what is promised."""
    ready = f"/readyz 200 {observed.probes - observed.unready} of {observed.probes} times"
    return (
        _answered(observed.phases.values()),
        _right(observed.compared),
        _own(observed.phases[FAULT], objective.own_share),
        _in_time(observed.phases[FAULT], objective.p99_s),
        Check("the service stays ready", observed.unready == 0 < observed.probes, ready),
        *map(_moved, observed.movements),
        _recovered(observed.recovered_s, objective.recover_s),
    )


def _answered(phases: Collection[Phase]) -> Check:
    due, ok = sum(each.due for each in phases), sum(each.ok for each in phases)
    errors = sum((Counter(each.errors) for each in phases), Counter[str]())
    listed = "".join(f", {count:,} {kind}" for kind, count in errors.items())
    return Check("every request is answered", 0 < due == ok, f"{ok:,} of {due:,} answered{listed}")


def _right(compared: CheckResult) -> Check:
    found = f"{compared.wrong:,} of {compared.compared:,} lists wrong"
    example = f" ({compared.examples[0]})" if compared.examples else ""
    return Check("no answer is another list", compared.compared > 0 == compared.wrong, found + example)


def _own(phase: Phase, least: float) -> Check:
    answers = max(1, sum(phase.sources.values()))
    own = phase.sources.get("personal", 0) / answers
    tiers = ", ".join(f"{count / answers:.0%} {tier}" for tier, count in phase.tiers.items())
    promise = f"{least:.0%} or more get their own list" if least else "what cannot be read is the popular list"
    return Check(promise, own >= least, f"{own:.1%} own lists from {tiers}")


def _in_time(phase: Phase, p99_s: float) -> Check:
    found = f"p99 {format_bounds(*phase.p99_us)}"
    if phase.p99_us[1] > p99_s * 1e6 and phase.late:
        found += f" ({phase.late})"
    return Check(f"p99 within {p99_s * 1000:g} ms", phase.p99_us[0] <= p99_s * 1e6, found)


def _moved(seen: Movement) -> Check:
    when = "never" if seen.after_s is None else f"after {seen.after_s:.1f} s"
    return Check(f"{seen.metric} rises", seen.after_s is not None, f"{seen.says} {when}")


def _recovered(recovered_s: float | None, within_s: float) -> Check:
    found = f"not as before within {within_s:g} s" if recovered_s is None else f"as before after {recovered_s:.1f} s"
    return Check(f"all is as before within {within_s:g} s", recovered_s is not None, found)
