"""A plan as one HTML file that asks nobody for anything: figures and their whys, curves, advice, assumptions."""

from collections.abc import Iterable
from string import Template

from bench.planner import plots
from bench.planner.figures import Figure
from bench.planner.inputs import KNOWN
from bench.planner.outline import cheapest, outline
from bench.planner.report import PlanReport
from bench.report.page import TEMPLATE
from bench.report.text import escaped, section, table
from stores.prices import LISTED

PRICE = "usd_"
TILES = (
    ("cheapest_cost", "Cosmos DB at its cheapest"), ("redis_cost", "Redis"), ("serve_ru", "Cosmos DB, to serve"),
    ("publish_ru_s", "Cosmos DB, to publish"), ("pods", "in all regions"),
)  # fmt: skip
METHOD = """
A plan is arithmetic: nothing was measured for it but what an input's source says was measured. RU charges are the
documented ones, by size; what an account really charges stands in each answer's header.

Throughput of a container is split evenly over its physical partitions. The fullest is taken to hold the hottest user
and an even share of the others; that several hot users meet in one partition is not in it.

Whatever happens within an hour is left to the headroom of ru_utilisation. What else an account costs (backups, network
between regions, private links, reserved capacity and its discount) is not in it.
"""


def page(report: PlanReport) -> str:
    """Lay out the whole file."""
    plan = report.plan
    inputs = plan.given.inputs
    title = f"hotplate plan: {inputs.users:,} users, {inputs.peak_rps:,g} requests/s"
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f'<p class="soft">{escaped(report.date)} · prices of {escaped(report.prices_file)}</p>',
        _verdict(report),
        _tiles(report),
        section(
            "Which store, at which rate", plots.costs(report.break_even, inputs.peak_rps), report.break_even.sentence
        ),
        section("A day", plots.day(plan), cheapest(plan)),
        _figures(report),
    ]
    if report.advice:
        rows = [
            (each.says, f"{each.cosmos_saves:,.2f}", f"{each.redis_saves:,.2f}", each.but) for each in report.advice
        ]
        headings = ["with one thing changed", "Cosmos DB saves", "Redis saves", "but"]
        parts.append(section("What would save money", table(headings, rows, (1, 2)), "USD a month, pods included."))
    parts += [_given(report), _prices(report), _why(plan.figures.values())]
    told = "".join(f"<p>{escaped(' '.join(each.split()))}</p>" for each in METHOD.strip().split("\n\n"))
    parts.append(section("What this is, and what it is not", told))
    return Template(TEMPLATE.read_text()).substitute(title=escaped(title), body="\n".join(parts))


def _verdict(report: PlanReport) -> str:
    listed = "".join(f"<li>{escaped(each)}</li>" for each in report.cautions)
    return f'<div class="verdict bad"><strong>Look out:</strong><ul>{listed}</ul></div>' if listed else ""


def _tiles(report: PlanReport) -> str:
    figures = report.plan.figures
    made = (
        f'<div class="tile"><b>{escaped(figures[name].told)}</b><span>{escaped(words)}</span></div>'
        for name, words in TILES
    )
    return f'<div class="tiles">{"".join(made)}</div>'


def _figures(report: PlanReport) -> str:
    bodies = []
    for group, lines in outline(report.plan):
        rows = "".join(
            f"<tr><td>{escaped(words)}</td><td class=n>{escaped(figure.told)}</td>"
            f"<td><code>{escaped(figure.name)}</code></td></tr>"
            for words, figure in lines
        )
        bodies.append(f'<tbody><tr><th colspan="3">{escaped(group)}</th></tr>{rows}</tbody>')
    return section("What it will take", f'<div class="scroll"><table class="grouped">{"".join(bodies)}</table></div>')


def _given(report: PlanReport) -> str:
    figures = report.plan.figures
    rows = [
        [name, _said(figures[name], known.metadata["says"]), figures[name].source]
        for name, known in KNOWN.items()
        if name in figures
    ]
    lead = "What is assumed can be replaced: by a flag, by --set NAME=VALUE, in a file for --from, or by a measurement."
    return section("What it rests on", table(["", "", "where from"], rows), lead)


def _prices(report: PlanReport) -> str:
    used = [each for name, each in report.plan.figures.items() if name.startswith(PRICE)]
    rows = [[each.name, f"{each.value:g}", each.unit, each.source] for each in used]
    doubtful = sum(not each.source.startswith(LISTED) for each in used)
    lead = f"{doubtful} of {len(used)} are not list prices that somebody looked up at the source." if doubtful else ""
    return section("Prices", table(["", "USD", "", "where from"], rows, (1,)), lead)


def _why(figures: Iterable[Figure]) -> str:
    """Show each figure with its formula, the values that went into it, and its source."""
    rows = "".join(
        f"<tr><td>{escaped(each.name)}</td>{_value(each)}"
        f"<td><code>{escaped(each.formula)}</code><br><span class=soft>{escaped(_inputs(each))}</span></td></tr>"
        for each in figures
        if each.name not in KNOWN and not each.name.startswith(PRICE)
    )
    return section(
        "Why",
        f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>',
        "Every figure, its formula and its inputs.",
    )


def _value(figure: Figure) -> str:
    numeric = "" if isinstance(figure.value, str) else " class=n"  # a text is long, and may wrap
    return f"<td{numeric}>{escaped(figure.told)}</td>"


def _said(figure: Figure, says: str) -> str:
    return f"{figure.told}{':' if isinstance(figure.value, str) else ''} {says}"


def _inputs(figure: Figure) -> str:
    given = ", ".join(f"{each.name} {each.told}" for each in figure.of)
    return f"{given} ({figure.source})" if figure.source and given else given or figure.source
