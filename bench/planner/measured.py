"""Measured values in the place of assumptions: from a report of the bench, and from a release in a store."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.planner.errors import PlanMisused
from bench.planner.inputs import KNOWN, Layer
from bench.planner.sizes import KEY_BYTES
from stores.manifest import Manifest

FORMAT = 2  # of `bench.report.report`, which reading here would need the extra `bench` for


def from_report(path: Path, p99_ms: float | None = None) -> Layer:
    """Read what `hotplate bench` measured: what a pod bears, how long a request stays in it, and what CPU it takes.

    A report of whatever kind may also carry `measured`, inputs of a plan by name; `read_ru`, say. With *p99_ms*, only
    rates that kept it count. Raises PlanMisused for a file that is no report, or none to be believed.
    """
    try:
        facts = json.loads(path.read_bytes())
        if facts["format"] != FORMAT:
            raise PlanMisused(f"--from-report: {path} has format {facts['format']}, and this reads {FORMAT}")
        if facts["interrupted"] or not facts["valid"]:
            raise PlanMisused(f"--from-report: {path} was stopped or is invalid; measure again")
        machine = facts["machine"]
        source = f"measured: {path.name}, {machine['cpu']}, {machine['cores']} cores, {str(machine['date'])[:10]}"
        values = dict(facts.get("measured", {}))
        if unknown := values.keys() - KNOWN.keys():
            raise PlanMisused(
                f"--from-report: {path} measured {', '.join(sorted(unknown))}, which is no input of a plan"
            )
        if facts["kind"] == "http":
            values |= _pod(facts, p99_ms, path)
        if facts["kind"] == "stores":
            values |= _service(facts)
    except OSError as error:
        raise PlanMisused(f"--from-report: {path}: {error.strerror}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, PlanMisused):
            raise
        raise PlanMisused(f"--from-report: {path} is no report of hotplate bench ({error!r})") from error
    if not values:
        raise PlanMisused(f"--from-report: {path} holds nothing that a plan can use")
    return Layer(source, values, f"{{name}} in {path}")


def from_release(manifest: Manifest, shown: str) -> Layer:
    """Read what a release says of itself: lists by kind, their mean size, their encoding.

    The manifest has one sum of bytes over all rows, so that popular lists and pieces of `meta` are in the mean.
    """
    rows = sum(manifest.counts.values())
    mean_bytes = manifest.bytes / max(1, rows)
    key_bytes = KEY_BYTES + fmean([len(key.partition(":")[2].encode()) for key in manifest.sample] or [0])
    values: dict[str, object] = {
        "users": manifest.counts.get("user", 0),
        "items": manifest.counts.get("item", 0),
        "list_bytes": max(1.0, round(mean_bytes - key_bytes, 1)),
        "encoding": manifest.encoding,
    }
    source = f"measured: manifest of {manifest.release} in {shown}, {rows:,} rows of {manifest.bytes:,} bytes"
    return Layer(source, values, f"{{name}} of {manifest.release}")


def _pod(facts: Mapping[str, Any], p99_ms: float | None, path: Path) -> dict[str, object]:
    """Read what one service bore: the highest rate of a search, or the rate that was asked of it."""
    rounds = [one for each in facts["series"] for one in each["rounds"] if one["latency_us"]]
    points = facts.get("search", {}).get("points", [])
    good = [(float(each["at"]), float(each["p99_us"])) for each in points if each["inside"]]
    if not good:
        good = [(float(one["ok_rate"]), float(one["latency_us"]["p99"])) for one in rounds]
    kept = [rate for rate, p99_us in good if p99_ms is None or p99_us <= p99_ms * 1000]
    if not kept:
        raise PlanMisused(
            f"--from-report: no rate of {path} kept a p99 of {p99_ms:g} ms; raise --p99-ms, or measure another"
        )
    return {"pod_rps": max(kept), "request_ms": round(_mean_ms(rounds), 4)}


def _service(facts: Mapping[str, Any]) -> dict[str, object]:
    """Read what a request cost the service, of the dearest store; an emulated one says nothing."""
    spent = [
        fmean([turn["service_cpu_us"] for turn in each["rounds"]])
        for each in facts["stores"]
        if each["emulated"] is None and each["rounds"]
    ]
    rounds = [one for each in facts["series"] for one in each["rounds"] if one["latency_us"]]
    if not spent or not rounds:
        return {}
    return {"request_cpu_us": round(max(spent), 2), "request_ms": round(_mean_ms(rounds), 4)}


def _mean_ms(rounds: Sequence[Mapping[str, Any]]) -> float:
    return max(float(one["latency_us"]["mean"]) for one in rounds) / 1000
