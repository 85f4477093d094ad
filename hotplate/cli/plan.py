"""`hotplate plan`: what will it take, what will it cost, and why?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import FAILED, MISUSED, Json, err, out, print_json, table, with_store

if TYPE_CHECKING:
    from bench.planner.figures import Figure
    from bench.planner.gate import Agreed
    from bench.planner.inputs import Layer
    from bench.planner.plan import Plan
    from bench.planner.report import PlanReport
    from stores.manifest import Manifest
    from stores.store import Store

LOAD, LISTS, COSMOS, MEASURED, TOLD = (
    "The load",
    "The lists",
    "Cosmos DB and pods",
    "Measured, not assumed",
    "What is told",
)


WORDS, VALUE = 38, 18


def _option(name: str, text: str, panel: str) -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        f"--{name}", envvar=f"HOTPLATE_PLAN_{name.replace('-', '_').upper()}", help=text, rich_help_panel=panel,
        show_default=False,
    )  # fmt: skip
    return made


def plan(
    users: Annotated[str | None, _option("users", "Who have a list.", LOAD)] = None,
    peak_rps: Annotated[str | None, _option("peak-rps", "Requests/s in the busiest hour.", LOAD)] = None,
    profile: Annotated[
        str | None, _option("profile", "flat, office, evening, or 24 rates, as 3,2,…; flat unless told.", LOAD)
    ] = None,
    items: Annotated[str | None, _option("items", "That have a list of similar ones; 0.", LOAD)] = None,
    zipf: Annotated[str | None, _option("zipf", "How unevenly users come, as 0.9; all alike.", LOAD)] = None,
    cache_entries: Annotated[str | None, _option("cache-entries", "Lists that each process keeps; 0.", LOAD)] = None,
    hit_rate: Annotated[str | None, _option("hit-rate", "Share of lookups that a cache answers.", LOAD)] = None,
    growth_percent: Annotated[str | None, _option("growth-percent", "A month; 0.", LOAD)] = None,
    months: Annotated[str | None, _option("months", "Of growth to last for; 0.", LOAD)] = None,
    regions: Annotated[str | None, _option("regions", "That each hold all of it; 1.", LOAD)] = None,
    list_length: Annotated[str | None, _option("list-length", "Items in a stored list; 20.", LISTS)] = None,
    list_bytes: Annotated[str | None, _option("list-bytes", "Of a list as stored, if you know.", LISTS)] = None,
    title_chars: Annotated[str | None, _option("title-chars", "Of an item's title; 0, none are stored.", LISTS)] = None,
    encoding: Annotated[str | None, _option("encoding", "json or zstd; zstd.", LISTS)] = None,
    refresh_hours: Annotated[str | None, _option("refresh-hours", "From one publish to the next; 24.", COSMOS)] = None,
    window_hours: Annotated[str | None, _option("window-hours", "That a publish may take; 1.", COSMOS)] = None,
    publish_ru: Annotated[
        str | None, _option("publish-ru", "RU/s for publishing, in place of a window.", COSMOS)
    ] = None,
    consistency: Annotated[
        str | None, _option("consistency", "eventual, prefix, session, bounded or strong; eventual.", COSMOS)
    ] = None,
    capacity: Annotated[
        str | None, _option("capacity", "manual, autoscale or serverless: what the total takes; manual.", COSMOS)
    ] = None,
    have_ru: Annotated[str | None, _option("have-ru", "RU/s provisioned by hand today.", COSMOS)] = None,
    p99_ms: Annotated[str | None, _option("p99-ms", "Objective that a report's rates are held to.", COSMOS)] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            envvar="HOTPLATE_PLAN_SET",
            help="Any other input; see docs/sizing.md. May be given several times.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[Path | None, _option("from", "A TOML file of inputs; a flag wins over it.", MEASURED)] = None,
    from_report: Annotated[Path | None, _option("from-report", "What `hotplate bench` measured.", MEASURED)] = None,
    from_release: Annotated[
        str | None, _option("from-release", "A store: the sizes of its live release.", MEASURED)
    ] = None,
    prices: Annotated[
        Path | None, _option("prices", "Your prices, in the form of our bench/prices.toml.", MEASURED)
    ] = None,
    charges: Annotated[
        Path | None, _option("charges", "Your RU charges, in the form of our stores/cosmos/charges.toml.", MEASURED)
    ] = None,
    why: Annotated[str | None, _option("why", "Explain one figure, by its name.", TOLD)] = None,
    check: Annotated[
        Path | None, _option("check", "Exit 1 where the need has outgrown this file by its bound, 10 %.", TOLD)
    ] = None,
    save: Annotated[Path | None, _option("save", "Write inputs and figures to a file for --check.", TOLD)] = None,
    report: Annotated[Path | None, _option("out", "Write this name with .json and .html.", TOLD)] = None,
    as_json: Json = False,
) -> None:
    """Turn a forecast into RU/s, partitions, pods, memory and money, and show why.

    Every assumption is named and can be replaced, best of all by a measurement.

    Example: hotplate plan --users 1000000 --peak-rps 500 --profile evening --zipf 0.9 --out plan
    """
    from bench.planner.errors import PlanMisused
    from stores.prices import PricesUnreadable

    flags = {
        "users": users, "peak_rps": peak_rps, "profile": profile, "items": items, "zipf": zipf,
        "cache_entries": cache_entries, "hit_rate": hit_rate, "growth_percent": growth_percent, "months": months,
        "regions": regions, "list_length": list_length, "list_bytes": list_bytes, "title_chars": title_chars,
        "encoding": encoding, "refresh_hours": refresh_hours, "window_hours": window_hours, "publish_ru": publish_ru,
        "consistency": consistency, "capacity": capacity, "have_ru": have_ru, "p99_ms": p99_ms,
    }  # fmt: skip
    try:
        agreed = _agreed(source, check)
        made = _worked_out(agreed, _flags(flags), _named(assume or []), from_report, from_release, prices, charges)
        _tell(made, agreed if check else None, why=why, save=save, report=report, prices=prices, as_json=as_json)
    except (PlanMisused, PricesUnreadable) as error:
        sentence = str(error).rstrip(".") + "."
        if as_json:
            err.print_json(data={"error": sentence, "kind": type(error).__name__}, indent=None)
        else:
            err.print("hotplate: ", sentence, sep="", markup=False)
        raise typer.Exit(MISUSED) from None


def _flags(given: Mapping[str, str | None]) -> "Layer":
    from bench.planner.inputs import Layer

    return Layer("flag", {name: value for name, value in given.items() if value is not None}, "--{flag}")


def _named(assume: list[str]) -> "Layer":
    from bench.planner.errors import PlanMisused
    from bench.planner.inputs import Layer

    values = dict[str, object]()
    for each in assume:
        name, equals, value = each.partition("=")
        if not equals:
            raise PlanMisused(f"--set takes NAME=VALUE, not {each!r}")
        values[name.strip()] = value.strip()
    return Layer("flag", values, "--set {name}")


def _agreed(source: Path | None, check: Path | None) -> "Agreed | None":
    from bench.planner.errors import PlanMisused
    from bench.planner.gate import read

    if source and check:
        raise PlanMisused("--check brings its own inputs; leave --from out")
    return read(source or check) if source or check else None  # type: ignore[arg-type]  # one of them is there


def _worked_out(
    agreed: "Agreed | None",
    flags: "Layer",
    named: "Layer",
    from_report: Path | None,
    from_release: str | None,
    prices: Path | None,
    charges: Path | None,
) -> "Plan":
    """Lay the inputs over each other, what is told on the command line last, and work the plan out."""
    from bench.planner import measured
    from bench.planner.inputs import gather
    from bench.planner.plan import work_out
    from stores import prices as price_list
    from stores.cosmos import charges as cosmos_charges
    from stores.urls import redacted

    layers = [agreed.layer] if agreed else []
    if from_release is not None:
        layers.append(measured.from_release(with_store(from_release, _live_manifest), redacted(from_release)))
    if from_report is not None:
        objective = gather([*layers, named, flags]).inputs.p99_ms
        layers.append(measured.from_report(from_report, objective))
    given = gather([*layers, named, flags])
    return work_out(
        given, price_list.load(prices or price_list.OURS), cosmos_charges.load(charges or cosmos_charges.OURS)
    )


async def _live_manifest(store: "Store") -> "Manifest":
    from hotplate.cli.releases import find_release
    from stores.verification import load_manifest

    return await load_manifest(store, await find_release(store, None))


def _tell(
    made: "Plan",
    agreed: "Agreed | None",
    *,
    why: str | None,
    save: Path | None,
    report: Path | None,
    prices: Path | None,
    as_json: bool,
) -> None:
    """Print the plan, or what of it was asked for; exit 1 where the need has grown."""
    from bench.planner.errors import PlanMisused
    from bench.planner.gate import BOUND_PERCENT, grown
    from bench.planner.report import report_of
    from stores.prices import OURS

    if why is not None and why not in made.figures:
        raise PlanMisused(f"--why: there is no figure {why!r}; there are {', '.join(made.figures)}")
    found = grown(made, agreed) if agreed else []
    told = report_of(made, prices or OURS)
    _keep(told, save, report, agreed.bound_percent if agreed else BOUND_PERCENT)
    if as_json:
        print_json(told.to_json() | ({"grown": [each.to_json() for each in found]} if agreed else {}))
    elif why is not None:
        _show_why(made.figures, why)
    elif agreed:
        for each in found:
            out.print(each.sentence, markup=False)
        kept = (
            f"{len(agreed.figures) - len(found)} of {len(agreed.figures)} figures are inside {agreed.bound_percent:g} %"
        )
        out.print(f"{kept} of {agreed.layer.source}", markup=False)
    else:
        _show(told)
    if found:
        raise typer.Exit(FAILED)


def _keep(told: "PlanReport", save: Path | None, report: Path | None, bound_percent: float) -> None:
    """Write the files that were asked for."""
    from bench.planner.errors import PlanMisused
    from bench.planner.gate import to_toml
    from bench.report.page import write

    for path in (each for each in (save, report) if each is not None):
        if not path.parent.is_dir():
            raise PlanMisused(f"there is no folder {path.parent} to write to")
    if report is not None:
        from bench.planner.files import keep

        keep(told, report)
    if save is not None:
        write(save, to_toml(told.plan, bound_percent))


def _show(report: "PlanReport") -> None:
    from bench.planner.outline import cheapest, outline

    made = report.plan
    for group, lines in outline(made):
        rows = [(words.ljust(WORDS), figure.told.rjust(VALUE), figure.name) for words, figure in lines]
        out.print(table((group, "", ""), rows))
        out.print()
    out.print(cheapest(made), markup=False)
    out.print(report.break_even.sentence, markup=False)
    if report.advice:
        out.print()
        advice = [
            (each.says, f"{each.cosmos_saves:,.2f}", f"{each.redis_saves:,.2f}", each.but) for each in report.advice
        ]
        out.print(table(("saves, USD/month", "Cosmos DB", "Redis", "but"), advice))
    out.print()
    assumed = [name for name, figure in made.figures.items() if figure.source.startswith("assumed")]
    out.print(f"assumed: {', '.join(f'{name} {made.figures[name].told}' for name in assumed)}", markup=False)
    for each in report.cautions:
        out.print(f"look out: {each}", markup=False)
    out.print("why: hotplate plan … --why NAME, or --out NAME for a page with all of it", markup=False)


def _show_why(figures: "Mapping[str, Figure]", name: str) -> None:
    from bench.planner.figures import why

    for depth, figure in why(figures, name):
        how = f" = {figure.formula}" if figure.formula else ""
        said = f"   [{figure.source}]" if figure.source else ""
        out.print(f"{'  ' * depth}{figure.name}: {figure.told}{how}{said}", markup=False)
