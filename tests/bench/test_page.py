"""The report as a page: opened in a real browser it makes no requests, in light and in dark."""

from pathlib import Path

import pytest

from bench.loadgen.capacity import Objective
from bench.loadgen.load import Load
from bench.loadgen.schedule import constant
from bench.report.page import page
from bench.report.report import Report, series
from tests.support.page import Outline, opened
from tests.support.virtual import simulate


@pytest.fixture(scope="module")
def report() -> Report:
    load = Load(url="http://simulated", paths=["/"], arrivals=constant(200, 3), duration_s=3)
    rounds = [simulate(load, lambda arrival_s: arrival_s + 0.002 + arrival_s % 0.003) for _ in range(3)]
    point = {"p50_us": 1000.0, "p99_us": 2000.0, "per_s": 100.0, "popular": 0.0, "invalid_reasons": [], "broken": []}
    objective = str(Objective({"p99": 5_000.0}))
    points = [point | {"at": rate} for rate in (100.0, 200.0)] + [point | {"at": 300.0, "broken": ["p99"]}]
    return Report(
        kind="http",
        configuration={"url": "http://simulated/<script>alert(1)</script>"},
        series=(series("simulated", rounds),),
        extra={
            "search": {"objective": objective, "highest": 200.0, "points": points},
            "checked": {"compared": 5, "wrong": 0, "fallback": 1, "examples": []},
        },
    )


def test_the_page_holds_all_that_it_needs(report: Report) -> None:
    text = page(report)
    outline = Outline()
    outline.feed(text)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert not outline.tags & {"script", "iframe", "object", "embed", "form"}
    assert "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text
    assert text.count("<svg") == 3
    assert "#0a000" not in text
    assert len(text) < 200_000


def test_an_invalid_report_says_so_first(report: Report) -> None:
    load = Load(url="http://simulated", paths=["/"], arrivals=constant(100, 1), duration_s=1, connections=1, backlog=1)
    jammed = simulate(load, lambda arrival_s: arrival_s + 0.5)
    text = page(Report(kind="http", configuration={}, series=(series("jammed", [jammed]),)))
    assert 'class="verdict bad"' in text
    assert "Invalid" in text
    assert 'class="verdict bad"' not in page(report)


def test_a_browser_that_opens_the_page_makes_no_request(report: Report, tmp_path: Path) -> None:
    written = tmp_path / "report.html"
    written.write_text(page(report))
    assert opened(written, tmp_path, scheme=0) == []
    assert opened(written, tmp_path, scheme=1) == []
    control = tmp_path / "control.html"
    control.write_text('<img src="http://127.0.0.1:9/seen.png">')
    assert opened(control, tmp_path, scheme=2) == ["http://127.0.0.1:9/seen.png"]
