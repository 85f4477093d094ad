"""Recorded latencies of a Cosmos DB, and their replay."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hotplate.bench.cosmos_emulator.faults import parse_latency
from hotplate.bench.cosmos_emulator.latency_trace import FORMAT, LatencyTrace
from hotplate.bench.errors import BenchMisused
from tests.support.command import hotplate

PERCENTILES = (50, 99, 99.9)


def a_trace(latencies_us: np.ndarray) -> LatencyTrace:
    counts = tuple(sorted(Counter(latencies_us.round().astype(int).tolist()).items()))
    return LatencyTrace(FORMAT, "cosmos://shop/lists", "2026-11-26", counts)


def test_a_trace_is_replayed_within_5_percent(tmp_path: Path) -> None:
    """A log-normal delay has no second mode, as a slow gateway gives."""
    rng = np.random.default_rng(1)
    fast, slow = rng.lognormal(8.3, 0.3, 19_600), rng.lognormal(10.5, 0.2, 400)
    recorded_us = np.concatenate([fast, slow])
    a_trace(recorded_us).save(tmp_path / "trace.json")
    draw_s = parse_latency(str(tmp_path / "trace.json"))
    replayed_us = [1e6 * draw_s() for _ in range(100_000)]
    for percent in PERCENTILES:
        assert np.percentile(replayed_us, percent) == pytest.approx(np.percentile(recorded_us, percent), rel=0.05)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for text in ("{}", "nonsense", json.dumps({"format": 2, "store": "", "date": "", "counts": []})):
        path.write_text(text)
        with pytest.raises(BenchMisused, match=r"trace\.json"):
            parse_latency(str(path))
    with pytest.raises(BenchMisused, match="No such file"):
        parse_latency(str(tmp_path / "none.json"))
    done = hotplate("bench", "stores", f"file://{tmp_path}/a", "--record", path, "--out", tmp_path / "found")
    assert done.returncode == 2
    assert "exactly one cosmos:// URL" in done.stderr
