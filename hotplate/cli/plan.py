"""`hotplate plan`: what a load needs and costs, and why."""

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from hotplate.bench.planner import inputs
from hotplate.cli.options import signed
from hotplate.cli.terminal import Json, err, out, print_json, require_folder, with_store
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.bench.planner.inputs import InputSource
    from hotplate.bench.planner.plan import CapacityPlan
    from hotplate.bench.planner.review import Baseline

MEASURED = "Measured, not assumed"
OUTPUT = "What is printed and written"


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
    prices_from_azure: Annotated[
        tuple[str, str] | None,
        Flag(
            "Write Azure's public retail prices to --prices FILE, else to prices.toml; as westeurope EUR.",
            MEASURED,
            metavar="REGION CURRENCY",
            env=False,
        ),
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

    Every assumption is named and can be replaced, best of all by a measurement. --have-ru alone says what these RU/s
    carry. Exit codes: 0 it was planned; 1 a file or a store could not be read; 2 the inputs make no sense; 3 --have-ru
    is too little, or --check found a figure that has grown.

    Example: hotplate plan --users 1000000 --peak-rps 500 --profile evening --zipf 0.9 --out plan
    """
    from hotplate.bench.planner import prices as price_list
    from hotplate.bench.planner.plan import calculate
    from hotplate.bench.planner.review import read_baseline
    from hotplate.bench.planner.review import report as report_of
    from hotplate.report import print_report, to_json
    from hotplate.stores.cosmos import charges as cosmos_charges

    if source and check:
        raise inputs.PlanMisused("--check brings its own inputs; leave --from out")
    for path in (save, report):
        require_folder(path)
    prices = _write_prices(prices_from_azure, prices)
    if prices_from_azure and not any((assume, source, check, from_report, from_release, *flags.values())):
        return
    file, prices, charges = source or check, prices or price_list.OURS, charges or cosmos_charges.OURS
    baseline = None if file is None else read_baseline(file)
    layers = _layers(baseline, _command_line(assume, flags), from_release, from_report)
    made = calculate(inputs.merge(layers), price_list.load(prices), cosmos_charges.load(charges))
    if why is not None and why not in made.figures:
        raise inputs.PlanMisused(f"--why: there is no figure {why!r}; there are {', '.join(made.figures)}")
    found = report_of(made, prices.name, baseline if check else None)
    if report is not None:
        from hotplate import report_page

        report_page.save(found, report)
    if save is not None:
        _save(made, baseline if check else None, save)
    if as_json:
        print_json(to_json(found))
    elif why is not None:
        _print_formulas(made, why)
    else:
        print_report(found, out)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield the parameters of `plan`, with a text in the place of **flags for each input that has a panel."""
    for each in inspect.signature(plan).parameters.values():
        if each.name != "flags":
            kind, shown = get_args(each.annotation)
            own = shown if shown.prefix == "" else shown._replace(prefix="PLAN_")
            yield each.replace(annotation=Annotated[kind, own])
    keyword = inspect.Parameter.KEYWORD_ONLY
    for name, known in inputs.KNOWN.items():
        if panel := known.metadata["panel"]:
            # A text, because inputs come from files, too, and one sentence refuses them all.
            kind = Annotated[str | None, Flag(inputs.flag_help(known), panel, prefix="PLAN_")]
            yield inspect.Parameter(name, keyword, default=None, annotation=kind)


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


def _write_prices(azure: tuple[str, str] | None, path: Path | None) -> Path | None:
    """Write Azure's prices, if they are asked for; return the file of prices to use."""
    from datetime import UTC, datetime

    from hotplate.bench.planner.prices import write_prices

    if azure is None:
        return path
    path = path or Path("prices.toml")
    require_folder(path)
    missing = write_prices(*azure, path, datetime.now(UTC).date())
    lacks = (
        f"; Azure's list has no price under the names that are looked for of: {', '.join(missing)}" if missing else ""
    )
    err.print(f"wrote {path}{lacks}")
    return path


def _save(made: "CapacityPlan", compared: "Baseline | None", path: Path) -> None:
    from hotplate.bench.planner.review import BOUND_PERCENT, to_toml

    path.write_text(to_toml(made, compared.bound_percent if compared else BOUND_PERCENT))


def _print_formulas(made: "CapacityPlan", name: str) -> None:
    from hotplate.bench.planner.figures import explain

    for depth, figure in explain(made.figures, name):
        formula = f" = {figure.formula}" if figure.formula else ""
        source = f"   [{figure.source}]" if figure.source else ""
        out.print(f"{'  ' * depth}{figure.name}: {figure}{formula}{source}")
