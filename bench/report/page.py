"""A report as an HTML page that makes no requests.

The page answers first: one sentence, three figures of each subject, one plot. All the rest is folded away below.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hotplate.bench.loadgen.capacity import PERCENTS
from hotplate.bench.loadgen.histogram import ENOUGH_SAMPLES
from hotplate.bench.report import plots, text
from hotplate.bench.report.report import WHILE_WRITTEN, Report, Series

FOLDED = "All figures, how they were measured, and the machine"
OPEN = (
    "Open loop: requests fall due by a schedule that does not wait for answers, and each latency runs from when its "
    "request was due, so what a stall kept waiting is charged to it."
)
CLOSED = (
    "Closed loop: each connection sends its next request only when the last one is answered. While the server stalls, "
    "nothing is sent and nothing is counted, so the latencies flatter; quote the rate of such a run, and nothing else."
)
COMPARED = (
    "The same release, users and schedule for each store. Means of rounds; in brackets the 95 % interval, where there "
    "are rounds enough for one."
)
SPECTRUM = (
    "How long responses took: the farther to the right, the fewer took longer. If there is a dotted line, it is a "
    "lower bound, from when requests were sent, and cut off where it falls below the frame."
)
SEARCH = "p99 over the requests/s that fell due. The knee is where it turns up; a vertical line is the highest rate."
KNEE = "below it every read is answered. Beyond it the rest is refused, and no more are answered."
LATE = "the generator was late there (lag p99 above 1 ms), so the latencies at the knee are not the store's."
LIMITS = f"""
Latency is what the client sees, its own reading and the network's way included. Where the generator was late itself,
two times stand with "to" between them: from when requests were sent, without what kept the generator away, and from
when they were due. The truth lies between the two. Answers that were errors have no latency here, so look at errors and
percentiles together.

Histograms hold 3 digits from 1 µs to 60 s. A percentile with fewer than {ENOUGH_SAMPLES} samples beyond it is
marked, because it is an anecdote.

The mean of rounds is the geometric one of the middle three fifths, and an interval is that mean's, of 95 %. It speaks
of chance within this measurement, not of another machine, another day or another load.

Where generator and server share a machine, each takes CPU and cache from the other.
"""


def page(report: Report) -> str:
    """Lay out the whole file."""
    facts, top = report.machine, report.summary
    parts = [text.caution("Look out:", report.complaints) if report.complaints else ""]
    if top.rows:
        parts.append(text.table(("", *top.headings), top.rows, range(1, len(top.headings) + 1), "summary"))
    parts += [f'<p class="note">{text.escaped(note)}</p>' for note in top.notes]
    parts += [_plot(report), text.folded(FOLDED, _details(report))]
    below = f"hotplate bench {report.kind} · {facts['date'][:16].replace('T', ' ')} · {facts['cpu']}"
    return text.whole_page(top.sentence, f"{below}, {facts['cores']} cores", parts)


def _plot(report: Report) -> str:
    """Draw what the sentence is about: a search that was asked for, or else the latencies; of a sweep nothing."""
    extra = report.extra
    rounds = [each for each in report.series if each.rounds and not each.name.endswith(WHILE_WRITTEN)]
    if swept := extra.get("ru", {}).get("found"):
        return _knee(swept[-1])
    if found := extra.get("search"):
        return text.figure(plots.search([found]), SEARCH)
    if not rounds or "sweep" in extra:  # the latencies of a closed loop, which the table has
        return ""
    return text.figure(plots.spectrum(rounds, report.summary.percentile), SPECTRUM)


def _knee(found: Mapping[str, Any]) -> str:
    late = found["best"] and found["best"]["late"]
    return text.figure(plots.knee(found), f"The knee at {found['ru']:,} RU/s: {LATE if late else KNEE}")


def _details(report: Report) -> list[str]:
    """Lay out all that does not decide."""
    extra, parts = report.extra, list[str]()
    rounds = [each for each in report.series if each.rounds]
    if compared := extra.get("comparison"):
        notes = text.html_paragraphs([*compared["notes"], *compared["left_out"]])
        parts.append(
            text.section("All figures", text.grouped_table(compared["heads"], compared["lines"]) + notes, COMPARED)
        )
        if searches := [each for each in compared["capacity"] if each["points"] and not each["emulated"]]:
            parts.append(text.section("The way to the highest rate", plots.search(searches), SEARCH))
    elif len(rounds) == 1:
        parts.append(_percentiles(rounds[0]))
    parts += [_knee(each) for each in extra.get("ru", {}).get("found", [])[:-1]]
    if "sweep" not in extra:
        lasting = [each for each in rounds if not each.name.endswith(WHILE_WRITTEN)]
        parts += [text.section(f"Second by second: {each.name}", plots.timeline(each)) for each in lasting]
    if rounds:
        parts.append(_outcomes(rounds, extra))
    return [*parts, _method(report), _setting(report)]


def _percentiles(shown: Series) -> str:
    rows = [(name, text.latency_cell(shown.summary[name])) for name in PERCENTS]
    heading = "mean of rounds, 95 % interval" if len(shown.rounds) > 1 else "latency"
    return text.section("Latency", text.table(("", heading), rows, (1,)), f"{shown.histogram.count:,} good answers.")


def _outcomes(rounds: Sequence[Series], extra: Mapping[str, Any]) -> str:
    facts = [each.facts for series in rounds for each in series.rounds]
    rows = [
        ["due, sent, good", " · ".join(f"{sum(each[name] for each in facts):,}" for name in ("due", "sent", "ok"))],
        ["errors", _counted(each["errors"] for each in facts)],
        ["dropped", f"{sum(each['dropped'] for each in facts):,}"],
        ["status codes", _counted(each["statuses"] for each in facts)],
    ]
    rows += [
        [name, _counted(each["seen"].get(name, {}) for each in facts)]
        for name in sorted({name for each in facts for name in each["seen"]})
    ]
    if checked := extra.get("checked"):
        fallback = f"{checked['fallback']:,} fell back to popular"
        counts = f"{checked['compared']:,} compared, {checked['wrong']:,} wrong, {fallback}"
        rows.append(["lists beside the store's", "; ".join([counts, *checked["examples"]])])
    lags = [each["lag_us"] for each in facts if each["lag_us"]]
    if lags:
        lag = [text.format_us(max(each[name] for each in lags)) for name in ("p50", "p99", "max")]
        rows.append(["lag of the generator, worst round", f"p50 {lag[0]}, p99 {lag[1]}, max {lag[2]}"])
    cpu = [each["cpu_us_per_request"] for each in facts]
    if cpu:
        rows.append(["CPU of the generator", f"{min(cpu):.1f} … {max(cpu):.1f} µs a request"])
    return text.section("What became of the requests", text.table(["", ""], rows))


def _counted(counts: Iterable[Mapping[str, int]]) -> str:
    total = sum(map(Counter, counts), Counter[str]())
    return ", ".join(f"{name or '(none)'} {count:,}" for name, count in sorted(total.items())) or "none"


def _method(report: Report) -> str:
    modes = {each.facts["mode"] for series in report.series for each in series.rounds}
    loops = [loop for mode, loop in (("open loop", OPEN), ("closed loop", CLOSED)) if mode in modes]
    own = report.extra.get("method") or report.extra.get("comparison", {}).get("method", [])
    return text.section(
        "What is measured, and what is not", text.html_paragraphs([*own, *loops, *text.paragraphs(LIMITS)])
    )


def _setting(report: Report) -> str:
    shown = {**report.configuration, **report.machine}
    rows = [[name, _written(value)] for name, value in shown.items() if value not in (None, [], {}, "", False)]
    return text.section("Configuration and machine", text.table(["", ""], rows))


def _written(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
