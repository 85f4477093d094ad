"""`hotplate plan`: what a load will take, what it will cost, and why."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.bench.planner import inputs
from hotplate.cli.options import parameter, signed
from hotplate.cli.terminal import REFUSED, Json, out, print_json, require_folder, table, with_store
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.bench.planner.inputs import InputSource
    from hotplate.bench.planner.plan import CapacityPlan
    from hotplate.bench.planner.review import Baseline, Growth, PlanReport

MEASURED = "Measured, not assumed"
OUTPUT = "What is printed and written"
# Widths of the columns of words and of values.
WORDS = 38
VALUE = 18


def plan(
    *,
    assume: Annotated[
        tuple[str, ...],
        Flag(
            "Set any other input; docs/sizing.md lists them. May be given several times.",
            name="set",
            metavar="NAME=VALUE",
        ),
    ] = (),
    source: Annotated[
        Path | None, Flag("Take inputs from this TOML file. A flag wins over it.", MEASURED, name="from")
    ] = None,
    from_report: Annotated[Path | None, Flag("Take what `hotplate bench` measured from its report.", MEASURED)] = None,
    from_release: Annotated[
        str | None, Flag("Take the sizes of the live release of the store at this URL.", MEASURED)
    ] = None,
    prices: Annotated[
        Path | None, Flag("Use your own prices, in the form of our bench/planner/prices.toml.", MEASURED)
    ] = None,
    charges: Annotated[
        Path | None, Flag("Use your own RU charges, in the form of our stores/cosmos/charges.toml.", MEASURED)
    ] = None,
    why: Annotated[str | None, Flag("Explain one figure, by its name.", OUTPUT)] = None,
    check: Annotated[
        Path | None, Flag("Exit with 3 if a figure exceeds that of this saved plan by more than 10 %.", OUTPUT)
    ] = None,
    save: Annotated[Path | None, Flag("Write inputs and figures to a file for --check.", OUTPUT)] = None,
    report: Annotated[
        Path | None, Flag("Write the report to this name with .json and .html.", OUTPUT, name="out")
    ] = None,
    as_json: Json = False,
    **flags: str | None,
) -> None:
    """Turn a forecast into RU/s, partitions, pods, memory and money, and show why.

    Every assumption is named and can be replaced, best of all by a measurement. Exit codes: 0 it was planned; 1 a file
    or a store could not be read; 2 the inputs make no sense; 3 --check found a figure that has grown.

    Example: hotplate plan --users 1000000 --peak-rps 500 --profile evening --zipf 0.9 --out plan
    """
    from hotplate.bench.planner import prices as price_list
    from hotplate.bench.planner.plan import calculate
    from hotplate.bench.planner.review import growth, read_baseline, review
    from hotplate.stores.cosmos import charges as cosmos_charges

    if source and check:
        raise inputs.PlanMisused("--check brings its own inputs; leave --from out")
    for path in (save, report):
        require_folder(path)
    file, prices, charges = source or check, prices or price_list.OURS, charges or cosmos_charges.OURS
    baseline = None if file is None else read_baseline(file)
    layers = _layers(baseline, _command_line(assume, flags), from_release, from_report)
    made = calculate(inputs.merge(layers), price_list.load(prices), cosmos_charges.load(charges))
    if why is not None and why not in made.figures:
        raise inputs.PlanMisused(f"--why: there is no figure {why!r}; there are {', '.join(made.figures)}")
    reviewed, compared = review(made, prices), baseline if check else None
    grown = growth(made, compared) if compared else []
    _write_files(reviewed, compared, report, save)
    if as_json:
        print_json(reviewed.to_json() | ({"grown": [asdict(each) for each in grown]} if compared else {}))
    elif why is not None:
        _print_formulas(made, why)
    elif compared:
        _print_growth(grown, compared)
    else:
        _print_report(reviewed)
    if grown:
        raise typer.Exit(REFUSED)


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield the parameters of `plan`, with a text in the place of **flags for each input that has a panel."""
    for each in inspect.signature(plan).parameters.values():
        if each.name != "flags":
            yield parameter(each.name, each.annotation, each.default, "PLAN_")
    for name, known in inputs.KNOWN.items():
        if panel := known.metadata["panel"]:
            # A text, because inputs come from files, too, and one sentence refuses them all.
            yield parameter(name, Annotated[str | None, Flag(inputs.flag_help(known), panel)], None, "PLAN_")


signed(plan, list(_parameters()))


def _command_line(assume: Sequence[str], flags: dict[str, str | None]) -> "list[InputSource]":
    """Return the inputs of --set and those of flags, which win over them."""
    values = dict[str, object]()
    for each in assume:
        name, equals, value = each.partition("=")
        if not equals:
            raise inputs.PlanMisused(f"--set takes NAME=VALUE, not {each!r}")
        values[name.strip()] = value.strip()
    given = {name: value for name, value in flags.items() if value is not None}
    return [inputs.InputSource("flag", values, "--set {name}"), inputs.InputSource("flag", given, "--{flag}")]


def _layers(
    baseline: "Baseline | None", command_line: "list[InputSource]", release: str | None, report: Path | None
) -> "list[InputSource]":
    """Return the inputs of each place that was named, each winning over those before it."""
    from hotplate.cli.releases import find_manifest
    from hotplate.stores.urls import redacted

    layers = [baseline.layer] if baseline else []
    if release is not None:
        manifest = with_store(release, lambda opened: find_manifest(opened, None))
        layers.append(inputs.from_release(manifest, redacted(release)))
    if report is not None:
        layers.append(inputs.from_report(report, inputs.merge([*layers, *command_line]).inputs.p99_ms))
    return [*layers, *command_line]


def _write_files(reviewed: "PlanReport", compared: "Baseline | None", report: Path | None, save: Path | None) -> None:
    from hotplate.bench.planner.review import BOUND_PERCENT, to_toml
    from hotplate.bench.report.text import write, write_report

    if report is not None:
        from hotplate.bench.planner.page import page

        write_report(report, reviewed.to_json(), page(reviewed))
    if save is not None:
        write(save, to_toml(reviewed.plan, compared.bound_percent if compared else BOUND_PERCENT))


def _print_growth(grown: "list[Growth]", baseline: "Baseline") -> None:
    for each in grown:
        out.print(each.sentence)
    count = len(baseline.figures)
    kept = f"{count - len(grown)} of {count} figures are inside {baseline.bound_percent:g} %"
    out.print(f"{kept} of {baseline.layer.source}")


def _print_report(report: "PlanReport") -> None:
    from hotplate.bench.planner.review import NOT_PRICED

    made = report.plan
    for group, lines in made.outline():
        rows = [(words.ljust(WORDS), report.shown(figure).rjust(VALUE), figure.name) for words, figure in lines]
        out.print(table((group, "", ""), rows))
        out.print()
    out.print(report.here.sentence)
    out.print(report.break_even.sentence)
    if report.savings:
        out.print()
        out.print(table(("saves, USD/month", "Cosmos DB", "Redis", "drawback"), report.advice()))
    out.print()
    out.print(table(("prices", "USD", "", "age"), report.prices()))
    out.print("prices that are quoted or assumed were not checked; put yours in a file for --prices")
    out.print(f"not priced: {', '.join(NOT_PRICED)}")
    out.print()
    assumed = [f"{name} {figure}" for name, figure in made.figures.items() if figure.source.startswith("assumed")]
    out.print(f"assumed: {', '.join(assumed)}")
    for each in report.warnings:
        out.print(f"look out: {each}")
    out.print("why: hotplate plan … --why NAME, or --out NAME for a page with all of it")


def _print_formulas(made: "CapacityPlan", name: str) -> None:
    from hotplate.bench.planner.figures import explain

    for depth, figure in explain(made.figures, name):
        formula = f" = {figure.formula}" if figure.formula else ""
        source = f"   [{figure.source}]" if figure.source else ""
        out.print(f"{'  ' * depth}{figure.name}: {figure}{formula}{source}")
