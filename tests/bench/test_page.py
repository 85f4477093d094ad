"""The report as a page: opened in a real browser it makes no requests, in light and in dark."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hotplate.bench.http import summary
from hotplate.bench.loadgen.capacity import Objective
from hotplate.bench.loadgen.histogram import Histogram
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.report.page import page
from hotplate.bench.report.plots import spectrum
from hotplate.bench.report.report import Report, Round, Series, series
from tests.support import browser
from tests.support.page import Outline, opened
from tests.support.virtual import simulate


@pytest.fixture(scope="module")
def report() -> Report:
    load = Load(url="http://simulated", requests=Gets("/"), rate=200, duration_s=3)
    rounds = [simulate(load, lambda arrival_s: arrival_s + 0.002 + arrival_s % 0.003) for _ in range(3)]
    point = {"p50_us": 1000.0, "p99_us": 2000.0, "per_s": 100.0, "popular": 0.0, "invalid_reasons": [], "broken": []}
    objective = str(Objective({"p99": 5_000.0}))
    points = [point | {"at": rate} for rate in (100.0, 200.0)] + [point | {"at": 300.0, "broken": ["p99"]}]
    made = Report(
        kind="http",
        configuration={"url": "http://simulated/<script>alert(1)</script>"},
        series=(series("simulated", rounds),),
        extra={
            "search": {"objective": objective, "highest": 200.0, "points": points},
            "checked": {"compared": 5, "wrong": 0, "fallback": 1, "examples": []},
        },
    )
    return replace(made, summary=summary(made, Objective({"p99": 5_000.0})))


def test_the_page_holds_all_that_it_needs(report: Report) -> None:
    text = page(report)
    outline = Outline()
    outline.feed(text)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert not outline.tags & {"script", "iframe", "object", "embed", "form"}
    assert "&lt;script&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text
    assert text.count("<svg") == 4  # the search and the seconds, each for a wide and a narrow page
    assert "#0a000" not in text
    assert len(text) < 300_000


def test_an_invalid_report_begins_with_that(report: Report) -> None:
    load = Load(url="http://simulated", requests=Gets("/"), rate=100, duration_s=1, connections=1, backlog=1)
    jammed = simulate(load, lambda arrival_s: arrival_s + 0.5)
    made = Report(kind="http", configuration={}, series=(series("jammed", [jammed]),))
    sentence = summary(made, Objective({})).sentence
    assert sentence.startswith("These figures do not measure the service, because round 1: ")
    assert 'class="verdict bad"' in page(made)
    assert 'class="verdict bad"' not in page(report)


def test_a_browser_that_opens_the_page_makes_no_request(report: Report, tmp_path: Path) -> None:
    written = tmp_path / "report.html"
    written.write_text(page(report))
    assert opened(written, tmp_path, scheme=0) == []
    assert opened(written, tmp_path, scheme=1) == []
    control = tmp_path / "control.html"
    control.write_text('<img src="http://127.0.0.1:9/seen.png">')
    assert opened(control, tmp_path, scheme=2) == ["http://127.0.0.1:9/seen.png"]


def test_a_spectrum_begins_at_the_fastest_response_however_low_the_lower_bound_falls() -> None:
    due = Histogram.of([0.0002 + 0.0001 * place for place in range(1_000)])
    sent = Histogram.of([0.000001] * 100 + [0.0002 + 0.00009 * place for place in range(900)])
    drawn = spectrum([Series("one", (Round({}, due, sent),))])
    assert ">100 ms<" in drawn
    assert ">1 ms<" in drawn
    assert "µs<" not in drawn


# What stands on the page: how much of it is seen without opening anything, and whether tables name their columns.
STRUCTURE = """JSON.stringify({
    headings: [...document.querySelectorAll("h1, h2")].filter((one) => one.checkVisibility()).map((h) => h.innerText),
    figures: [...document.querySelectorAll(".summary tbody tr")].map((row) => row.querySelectorAll("td").length),
    plots: [...document.querySelectorAll("svg")].filter((one) => one.checkVisibility()).map((one) => one.ariaLabel),
    open: [...document.querySelectorAll("details")].filter((one) => one.open).length,
    unnamed: document.querySelectorAll("th:not([scope]), svg:not([aria-label])").length,
    wider: document.documentElement.scrollWidth > innerWidth,
})"""


async def test_a_report_is_one_sentence_three_figures_and_one_plot_and_the_rest_is_folded(
    report: Report, tmp_path: Path
) -> None:
    written = tmp_path / "report.html"
    written.write_text(page(report))
    async with browser.opened(written.as_uri(), tmp_path) as shown:
        await shown.until("document.querySelector('details') !== null")
        for width in (1280, 390):
            await shown.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
            )
            found = json.loads(await shown.evaluate(STRUCTURE))
            assert found == {
                "headings": ["The highest rate inside p99 ≤ 5 ms, errors ≤ 0.1 % is 200 requests/s."],
                "figures": [3],
                "plots": ["Plot of p99, outside, invalid run over requests/s that fell due"],
                "open": 0,
                "unnamed": 0,
                "wider": False,
            }
        await shown.evaluate("document.querySelector('details').open = true")
        opened_up = json.loads(await shown.evaluate(STRUCTURE))
        assert len(opened_up["headings"]) > 3
        assert len(opened_up["plots"]) == 2
        assert shown.complaints == []
