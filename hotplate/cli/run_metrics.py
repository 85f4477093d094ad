"""What a scheduled run says to Prometheus: pushed to a Pushgateway, or written where node_exporter reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway, write_to_textfile

PUSH_TIMEOUT_S = 10.0
OUTCOMES = ("published", "unchanged", "refused", "failed", "interrupted")
_JOB = "hotplate_run"


def push_metrics(url: str, summary: Mapping[str, Any]) -> None:
    """Replace what the Pushgateway at *url* has of this pipeline; OSError or ValueError if it cannot be."""
    push_to_gateway(url, _JOB, _registry(summary), {"pipeline": summary["pipeline"]}, timeout=PUSH_TIMEOUT_S)


def write_metrics(path: Path, summary: Mapping[str, Any]) -> None:
    """Replace the file at *path* as a whole."""
    write_to_textfile(str(path), _registry(summary))


def _registry(summary: Mapping[str, Any]) -> CollectorRegistry:
    registry, pipeline = CollectorRegistry(), summary["pipeline"]

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"hotplate_run_{name}", text, ("pipeline", *labels), registry=registry)

    if summary.get("succeeded_at"):
        succeeded = gauge("last_success_timestamp_seconds", "When a run last ended as it should.")
        succeeded.labels(pipeline).set(summary["succeeded_at"])
    ended = gauge("last_timestamp_seconds", "When a run last ended, however it did.")
    ended.labels(pipeline).set(summary["ended_at"])
    outcome = gauge("outcome", "1 for how the last run ended.", "outcome")
    for each in OUTCOMES:
        outcome.labels(pipeline, each).set(summary["outcome"] == each)
    duration = gauge("duration_seconds", "How long each step of the last run took.", "step")
    for step, seconds in summary.get("seconds", {}).items():
        duration.labels(pipeline, step).set(seconds)
    quality = gauge("metric", "What the model of the last run was measured to be worth.", "metric")
    for name, value in summary.get("metrics", {}).items():
        quality.labels(pipeline, name).set(value)
    failed = gauge("gates_failed", "How many gates said no.")
    failed.labels(pipeline).set(sum(not gate["passed"] for gate in summary.get("gates", ())))
    return registry
