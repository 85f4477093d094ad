"""The load of the reference architecture: the published row, what the load needs, and a run from end to end."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.base.report import Report
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.measure.lists import CheckResult
from hotplate.bench.options import ReferenceOptions, StoresOptions
from hotplate.bench.process import Server
from hotplate.bench.stores import reference
from hotplate.bench.stores import report as stores_report
from hotplate.bench.stores.comparison import needed_ru
from hotplate.bench.stores.reference import PUBLISHED
from hotplate.bench.stores.rounds import Candidate, Measured, ServiceRun, Setup, StoreRuns
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.manifest import Manifest
from tests.support.command import hotplate
from tests.support.service import a_list, publish_lists
from tests.support.virtual import delayed, simulate

NAME = "Cosmos emulator"


def measured(late_s: float = 0.0) -> Measured:
    load = Load(url="http://h", requests=Gets("/"), rate=180, seed=1, duration_s=10, connections=200)
    result = delayed(simulate(load, lambda arrival_s: arrival_s + 0.005), late_s)
    result = replace(result, sources={"personal": result.ok}, samples=())
    manifest = Manifest(ReleaseId("r"), "json", 0.0, {"user": 10}, 5_000, "", (), (), {})
    candidate = Candidate(NAME, "cosmos+http://127.0.0.1:1/d?ru=11000", manifest, Server("http://h", 0), 1.0)
    run = ServiceRun(result, 1e-4 * result.ok)
    return Measured((StoreRuns(candidate, (run,), CheckResult(5, 0, 0, ())),), interrupted=False)


def report(options: ReferenceOptions, measured: Measured) -> Report:
    setup = Setup(tuple(store.candidate for store in measured.stores), ("1",))
    return reference.report(options, stores_report.report(StoresOptions(rate="180"), setup, measured))


def test_published_row_is_beside_the_measured_one() -> None:
    reference_report = report(ReferenceOptions(), measured())
    published = reference_report.row(PUBLISHED, "p50")
    ours = reference_report.row(NAME, "p50")
    assert published is not None
    assert ours is not None
    assert (published.value, ours.note) == (60_000, "assumed")
    assert ours.value == pytest.approx(5_000, rel=0.01)
    cost = reference_report.row(NAME, "cost of a billion reads")
    assert cost is not None
    assert cost.note == "400 RU/s"
    assert reference_report.sentence == (
        "180 requests/s need 400 RU/s (23 USD a month) by an emulator's charges, not the reference's 11,000 (642). "
        "Faster than the published median of 60 ms? Unknown: our p50 of 5 ms is assumed."
    )
    assert reference_report.exit_code == 0
    assert reference_report.emulated == (NAME,)
    assert "by an emulator of Azure's charges" in reference_report.origins["exact"]
    late = report(ReferenceOptions(), measured(late_s=0.03))
    assert late.exit_code == 1
    assert late.sentence.startswith("There is no verdict: Cosmos emulator: the generator itself was 30 ms late at p99")
    assert late.row(NAME, "p50").value is None  # type: ignore[union-attr]  # it has one
    failed = report(ReferenceOptions(), measured()._replace(failure="it died"))
    assert (failed.exit_code, failed.failures) == (1, ("it died",))


def test_ru_for_a_rate_are_rounded_up() -> None:
    assert needed_ru(1.0, 180) == 400
    assert needed_ru(4.76, 180) == 1_300  # 180 x 4.76 / 0.7, in steps of 100


async def test_an_account_is_a_cosmos_db(tmp_path: Path) -> None:
    await publish_lists(tmp_path / "store", {"user:1": a_list("i")})
    done = hotplate("bench", "reference", "--account", f"file://{tmp_path}/store", "--out", tmp_path / "found")
    assert done.returncode == 2
    assert "--account takes a Cosmos DB" in done.stderr


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_it_runs_against_an_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.bench.loadgen.result.LATE_US", math.inf)  # a busy machine delays the generator
    done = hotplate("bench", "reference", "--duration", "5s", "--json", "--out", tmp_path / "found")
    assert done.returncode in {0, 3}, done.stderr  # 3 where the machine was too busy to serve lists in time
    facts = json.loads(done.stdout)
    assert facts["kind"] == "reference"
    assert {row["subject"] for row in facts["rows"]} == {PUBLISHED, NAME}
    assert (tmp_path / "found.html").exists()
