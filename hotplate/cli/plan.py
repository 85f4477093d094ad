"""`hotplate plan`: what a load will take, what it will cost, and why."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.planner.inputs import KNOWN, flag_help
from hotplate.cli.terminal import FAILED, MISUSED, Json, err, out, print_json, table, with_store

if TYPE_CHECKING:
    from bench.planner.inputs import Layer
    from bench.planner.plan import Plan
    from bench.planner.review import Baseline, PlanReport
    from stores.manifest import Manifest
    from stores.store import Store

MEASURED, OUTPUT = "Measured, not assumed", "What is printed and written"
# Widths of the columns of words and of values.
WORDS, VALUE = 38, 18


def _option(name: str, text: str, panel: str) -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        f"--{name}", envvar=f"HOTPLATE_PLAN_{name.replace('-', '_').upper()}", help=text, rich_help_panel=panel,
        show_default=False,
    )  # fmt: skip
    return made


def plan(
    *,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            envvar="HOTPLATE_PLAN_SET",
            help="Set any other input; docs/sizing.md lists them. May be given several times.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[Path | None, _option("from", "A TOML file of inputs. A flag wins over it.", MEASURED)] = None,
    from_report: Annotated[
        Path | None, _option("from-report", "Take what `hotplate bench` measured from its report.", MEASURED)
    ] = None,
    from_release: Annotated[
        str | None, _option("from-release", "Take the sizes of the live release of the store at this URL.", MEASURED)
    ] = None,
    prices: Annotated[
        Path | None, _option("prices", "Your prices, in the form of our stores/prices.toml.", MEASURED)
    ] = None,
    charges: Annotated[
        Path | None, _option("charges", "Your RU charges, in the form of our stores/cosmos/charges.toml.", MEASURED)
    ] = None,
    why: Annotated[str | None, _option("why", "Explain one figure, by its name.", OUTPUT)] = None,
    check: Annotated[
        Path | None,
        _option("check", "Exit 1 where a figure exceeds that of this saved plan by more than 10 %.", OUTPUT),
    ] = None,
    save: Annotated[Path | None, _option("save", "Write inputs and figures to a file for --check.", OUTPUT)] = None,
    report: Annotated[
        Path | None, _option("out", "Write the report to this name with .json and .html.", OUTPUT)
    ] = None,
    as_json: Json = False,
    **inputs: str | None,
) -> None:
    """Turn a forecast into RU/s, partitions, pods, memory and money, and show why.

    Every assumption is named and can be replaced, best of all by a measurement.

    Example: hotplate plan --users 1000000 --peak-rps 500 --profile evening --zipf 0.9 --out plan
    """
    from bench.planner.inputs import Layer, PlanMisused
    from stores.prices import OURS, PricesUnreadable

    flags = Layer("flag", {name: value for name, value in inputs.items() if value is not None}, "--{flag}")
    try:
        baseline = _baseline(source, check)
        layers = [_assumed(assume or []), flags]
        made = _calculated(baseline, layers, from_report, from_release, prices or OURS, charges)
        compared = baseline if check else None
        _present(made, compared, why=why, save=save, report=report, prices=prices or OURS, as_json=as_json)
    except (PlanMisused, PricesUnreadable) as error:
        sentence = str(error).rstrip(".") + "."
        if as_json:
            err.print_json(data={"error": sentence, "kind": type(error).__name__}, indent=None)
        else:
            err.print("hotplate: ", sentence, sep="", markup=False)
        raise typer.Exit(MISUSED) from None


def _signature() -> inspect.Signature:
    """Return the signature of `plan` with a text option in the place of **inputs for each input that has a panel."""
    own = [each for each in inspect.signature(plan).parameters.values() if each.name != "inputs"]
    kind = inspect.Parameter.KEYWORD_ONLY
    for name, known in KNOWN.items():
        if panel := known.metadata["panel"]:
            option = Annotated[str | None, _option(name.replace("_", "-"), flag_help(known), panel)]
            own.append(inspect.Parameter(name, kind, default=None, annotation=option))
    return inspect.Signature(own)


plan.__signature__ = _signature()  # type: ignore[attr-defined]  # what inspect.signature, and so typer, looks for


def _assumed(assume: list[str]) -> "Layer":
    from bench.planner.inputs import Layer, PlanMisused

    values = dict[str, object]()
    for each in assume:
        name, equals, value = each.partition("=")
        if not equals:
            raise PlanMisused(f"--set takes NAME=VALUE, not {each!r}")
        values[name.strip()] = value.strip()
    return Layer("flag", values, "--set {name}")


def _baseline(source: Path | None, check: Path | None) -> "Baseline | None":
    from bench.planner.inputs import PlanMisused
    from bench.planner.review import read_baseline

    if source and check:
        raise PlanMisused("--check brings its own inputs; leave --from out")
    path = source or check
    return None if path is None else read_baseline(path)


def _calculated(
    baseline: "Baseline | None",
    command_line: "list[Layer]",
    from_report: Path | None,
    from_release: str | None,
    prices: Path,
    charges: Path | None,
) -> "Plan":
    """Lay the inputs over each other, those of the command line last, and calculate the plan."""
    from bench.planner import inputs
    from bench.planner.plan import calculate
    from stores import prices as price_list
    from stores.connect import redacted
    from stores.cosmos import charges as cosmos_charges

    layers = [baseline.layer] if baseline else []
    if from_release is not None:
        layers.append(inputs.from_release(with_store(from_release, _live_manifest), redacted(from_release)))
    if from_report is not None:
        objective = inputs.merge([*layers, *command_line]).inputs.p99_ms
        layers.append(inputs.from_report(from_report, objective))
    sourced = inputs.merge([*layers, *command_line])
    return calculate(sourced, price_list.load(prices), cosmos_charges.load(charges or cosmos_charges.OURS))


async def _live_manifest(store: "Store") -> "Manifest":
    from hotplate.cli.releases import find_release
    from stores.verification import load_manifest

    return await load_manifest(store, await find_release(store, None))


def _present(
    made: "Plan",
    baseline: "Baseline | None",
    *,
    why: str | None,
    save: Path | None,
    report: Path | None,
    prices: Path,
    as_json: bool,
) -> None:
    """Print the plan, or the part of it that was requested; exit 1 where a figure exceeds its baseline."""
    from dataclasses import asdict

    from bench.planner.inputs import PlanMisused
    from bench.planner.review import BOUND_PERCENT, growth, review

    if why is not None and why not in made.figures:
        raise PlanMisused(f"--why: there is no figure {why!r}; there are {', '.join(made.figures)}")
    grown = growth(made, baseline) if baseline else []
    reviewed = review(made, prices)
    _write(reviewed, save, report, baseline.bound_percent if baseline else BOUND_PERCENT)
    if as_json:
        print_json(reviewed.to_json() | ({"grown": [asdict(each) for each in grown]} if baseline else {}))
    elif why is not None:
        _print_formulas(made, why)
    elif baseline:
        for each in grown:
            out.print(each.sentence, markup=False)
        count = len(baseline.figures)
        kept = f"{count - len(grown)} of {count} figures are inside {baseline.bound_percent:g} %"
        out.print(f"{kept} of {baseline.layer.source}", markup=False)
    else:
        _print_report(reviewed)
    if grown:
        raise typer.Exit(FAILED)


def _write(reviewed: "PlanReport", save: Path | None, report: Path | None, bound_percent: float) -> None:
    """Write the files that were requested."""
    from bench.planner.inputs import PlanMisused
    from bench.planner.review import to_toml
    from bench.report.text import write

    for path in (each for each in (save, report) if each is not None):
        if not path.parent.is_dir():
            raise PlanMisused(f"there is no folder {path.parent} to write to")
    if report is not None:
        from bench.planner.page import write_files

        write_files(reviewed, report)
    if save is not None:
        write(save, to_toml(reviewed.plan, bound_percent))


def _print_report(report: "PlanReport") -> None:
    made = report.plan
    for group, lines in made.outline():
        rows = [(words.ljust(WORDS), str(figure).rjust(VALUE), figure.name) for words, figure in lines]
        out.print(table((group, "", ""), rows))
        out.print()
    out.print(made.cheapest_sentence, markup=False)
    out.print(report.break_even.sentence, markup=False)
    if report.savings:
        out.print()
        savings = [
            (each.change, f"{each.cosmos_saves:,.2f}", f"{each.redis_saves:,.2f}", each.drawback)
            for each in report.savings
        ]
        out.print(table(("saves, USD/month", "Cosmos DB", "Redis", "drawback"), savings))
    out.print()
    assumed = [f"{name} {figure}" for name, figure in made.figures.items() if figure.source.startswith("assumed")]
    out.print(f"assumed: {', '.join(assumed)}", markup=False)
    for each in report.warnings:
        out.print(f"look out: {each}", markup=False)
    out.print("why: hotplate plan … --why NAME, or --out NAME for a page with all of it", markup=False)


def _print_formulas(made: "Plan", name: str) -> None:
    from bench.planner.figures import explain

    for depth, figure in explain(made.figures, name):
        formula = f" = {figure.formula}" if figure.formula else ""
        source = f"   [{figure.source}]" if figure.source else ""
        out.print(f"{'  ' * depth}{figure.name}: {figure}{formula}{source}", markup=False)
