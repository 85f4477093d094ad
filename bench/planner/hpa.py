"""The Kubernetes HorizontalPodAutoscaler as arithmetic: from metrics to a number of pods, its `behavior` included.

As `horizontal.go` and `replica_calculator.go` of kubernetes/kubernetes, pkg/controller/podautoscaler, have it, and
https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/ says it. Left out are metrics that cannot be
read, targets that were scaled to zero, and the policies Min and Disabled.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.planner.figures import round_up

# How often it looks, and how far a metric may be from its target before anything is changed: the defaults of
# kube-controller-manager.
SYNC_S = 15
TOLERANCE = 0.1
# The metric of requests/s, as an adapter of custom metrics has to name it.
RATE = "hotplate_http_requests_per_second"


class Policy(NamedTuple):
    """At most so many pods more or less, or per cent of them, within a period."""

    kind: str
    value: int
    period_s: int

    def limit(self, pods: int, direction: int) -> float:
        """Return the most (*direction* 1) or the fewest (-1) pods that a period may end with that began with *pods*."""
        if self.kind == "Pods":
            return pods + direction * self.value
        change = pods * self.value / 100
        return round_up(pods + change, 1) if direction > 0 else int(pods - change)


@dataclass(frozen=True, slots=True)
class Rules:
    """How pods are added, or removed: the window whose most careful recommendation holds, and the fastest policy."""

    window_s: int
    policies: tuple[Policy, ...]

    def to_spec(self) -> dict[str, Any]:
        """Return them as a manifest has them."""
        policies = [
            {"type": kind, "value": value, "periodSeconds": period_s} for kind, value, period_s in self.policies
        ]
        return {"stabilizationWindowSeconds": self.window_s, "selectPolicy": "Max", "policies": policies}


# The defaults of a manifest.
UP = Rules(0, (Policy("Percent", 100, 15), Policy("Pods", 4, 15)))
DOWN = Rules(300, (Policy("Percent", 100, 15),))


@dataclass(frozen=True, slots=True)
class Hpa:
    """The parameters of an autoscaler: CPU is in per cent of what a pod requests, and `pod_rps` requests/s of a pod."""

    min_pods: int
    max_pods: int
    cpu_percent: int
    pod_rps: int
    up: Rules = UP
    down: Rules = DOWN

    def to_spec(self) -> dict[str, Any]:
        """Return the `spec` of a manifest, without what it scales."""
        cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": self.cpu_percent}}
        rate = {"metric": {"name": RATE}, "target": {"type": "AverageValue", "averageValue": str(self.pod_rps)}}
        return {
            "minReplicas": self.min_pods,
            "maxReplicas": self.max_pods,
            "metrics": [{"type": "Resource", "resource": cpu}, {"type": "Pods", "pods": rate}],
            "behavior": {"scaleUp": self.up.to_spec(), "scaleDown": self.down.to_spec()},
        }


class Metric(NamedTuple):
    """What one metric says: the mean *use*, by its target, of the *pods* that were measured, and who was not."""

    use: float
    pods: int
    unready: int = 0
    missing: int = 0
    """Ready pods without a sample: idle if pods would be added, on target if they would be removed."""


def recommended(current: int, metric: Metric) -> int:
    """Return how many of *current* pods one metric wants there to be.

    Pods that are not ready count as idle if pods would be added, and otherwise not at all.
    """
    rises = metric.use > 1
    unready = metric.unready if rises else 0
    counted = metric.pods + metric.missing + unready
    use = (metric.use * metric.pods + (0 if rises else metric.missing)) / counted
    turned = (use > 1) != rises and counted != metric.pods
    if abs(1 - use) <= TOLERANCE or turned:
        return current
    wanted = round_up(use * counted, 1)
    against = wanted < current if rises else wanted > current
    return current if against and counted != metric.pods else wanted


class Autoscaler:
    """One HorizontalPodAutoscaler at work; lives as long as what it scales."""

    def __init__(self, hpa: Hpa) -> None:
        self._hpa = hpa
        self._longest_s = max(hpa.up.window_s, hpa.down.window_s)
        self._recommended = deque[tuple[float, int]]()
        self._changes = deque[tuple[float, int]]()

    def decide(self, now_s: float, current: int, metrics: Iterable[Metric]) -> int:
        """Return how many pods there shall be from now on; called every SYNC_S with what the metrics say."""
        hpa = self._hpa
        if not hpa.min_pods <= current <= hpa.max_pods:
            wanted = min(max(current, hpa.min_pods), hpa.max_pods)
        elif measured := [metric for metric in metrics if metric.pods]:
            wanted = self._stabilised(now_s, current, max(recommended(current, metric) for metric in measured))
            wanted = self._limited(now_s, current, wanted)
        else:
            return current
        if wanted != current:
            self._changes.append((now_s, wanted - current))
        return wanted

    def _stabilised(self, now_s: float, current: int, wanted: int) -> int:
        """Return the nearest to *current* of what was recommended within the window of its direction."""
        past = self._recommended
        if not past:
            past.append((now_s, current))
        while past and past[0][0] < now_s - self._longest_s:
            past.popleft()
        least = min([wanted, *(pods for at_s, pods in past if at_s > now_s - self._hpa.up.window_s)])
        most = max([wanted, *(pods for at_s, pods in past if at_s > now_s - self._hpa.down.window_s)])
        past.append((now_s, wanted))
        return min(max(current, least), most)

    def _limited(self, now_s: float, current: int, wanted: int) -> int:
        """Return what the policies and the bounds allow of a change."""
        direction = (wanted > current) - (wanted < current)
        if direction == 0:
            return current
        rules = self._hpa.up if direction > 0 else self._hpa.down
        limits = [each.limit(current - self._changed(now_s, each.period_s), direction) for each in rules.policies]
        if direction > 0:
            return min(wanted, max(int(max(limits)), current), self._hpa.max_pods)
        return max(wanted, min(int(min(limits)), current), self._hpa.min_pods)

    def _changed(self, now_s: float, period_s: int) -> int:
        """Return by how many pods the last *period_s* have changed the number."""
        return sum(change for at_s, change in self._changes if at_s > now_s - period_s)
