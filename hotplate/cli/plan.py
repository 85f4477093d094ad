"""`hotplate plan`: the capacity and cost of a load."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from click.exceptions import Exit

from hotplate.base.report import Report, write_file
from hotplate.bench.figure_names import read_report
from hotplate.bench.planner import inputs
from hotplate.bench.planner import prices as price_list
from hotplate.bench.planner.formulas import explain
from hotplate.bench.planner.inputs import InputSource
from hotplate.bench.planner.pictures import pictures
from hotplate.bench.planner.plan import CapacityPlan, calculate
from hotplate.bench.planner.plan_report import in_brief, in_full, report
from hotplate.bench.planner.saved_plan import BOUND_PERCENT, Baseline, read_baseline, to_toml
from hotplate.cli.terminal import (
    err,
    out,
    require_file_path,
    require_folder,
    run_on_store,
    show_report,
)
from hotplate.stores.cosmos import charges as cosmos_charges
from hotplate.stores.cosmos.charges import Charges
from hotplate.stores.errors import did_you_mean
from hotplate.stores.options import Flag
from hotplate.stores.urls import redacted

_flag = partial(Flag, prefix="PLAN_")
_measured = partial(_flag, panel="Measured, not assumed")
_output = partial(_flag, panel="What is printed and written")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFlags:
    """The flags of `plan` besides its inputs."""

    set_inputs: Annotated[
        tuple[str, ...],
        _flag("Set any other input; docs/sizing.md lists them. Repeatable.", name="set", metavar="NAME=VALUE"),
    ] = ()
    source: Annotated[Path | None, _measured("Read inputs from this TOML file; flags win.", name="from")] = None
    from_report: Annotated[
        tuple[Path, ...],
        _measured("Take the measurements of a report of `hotplate bench http` or `stores`, or plot one of `ru`."),
    ] = ()
    from_release: Annotated[
        str | None, _measured("Take the sizes of the live release of this store.", metavar="URL")
    ] = None
    prices: Annotated[Path | None, _measured("Use these prices, in the form of bench/planner/prices.toml.")] = None
    prices_from_azure: Annotated[
        tuple[str, str] | None,
        _measured(
            "Write Azure's public retail prices to --prices FILE, else to prices.toml; as westeurope EUR.",
            metavar="REGION CURRENCY",
            env=False,
        ),
    ] = None
    charges: Annotated[Path | None, _measured("Use these charges, in the form of stores/cosmos/charges.toml.")] = None
    in_full: Annotated[bool, _output("Print all figures and assumptions.", name="all")] = False
    why: Annotated[str | None, _output("Explain this figure by its formula and sources.", metavar="FIGURE")] = None
    check: Annotated[Path | None, _output("Exit with 3 if a figure exceeds this saved plan by more than 10 %.")] = None
    save: Annotated[Path | None, _output("Write inputs and figures to a file for --check.")] = None
    report: Annotated[
        Path | None, _output("Write the report to NAME.json and NAME.html.", name="out", metavar="NAME")
    ] = None
    open_page: Annotated[
        bool, _output("Open the planner as a page, on loopback, until Ctrl-C, with these inputs.", name="open")
    ] = False

    def __post_init__(self) -> None:
        if self.source and self.check:
            raise inputs.PlanMisused("--check contains the inputs; leave out --from")
        require_file_path(self.save)
        require_folder(self.report)


def plan(flags: PlanFlags, **values: str | None) -> None:
    """Turn a forecast into RU/s, partitions, pods, memory and money, with the formulas.

    Every assumption is named and can be replaced. --have-ru alone computes the load that these RU/s carry.

    Exit codes: 0 planned; 1 a file or a store could not be read; 2 invalid inputs; 3 --have-ru is too little, or
    --check found a figure that has grown.

    Example: hotplate plan --users 1000000 --peak-rps 500 --profile evening --zipf 0.9 --out plan
    """
    prices = flags.prices or price_list.OURS
    if flags.prices_from_azure:
        prices = flags.prices or Path("prices.toml")
        _write_prices(*flags.prices_from_azure, prices)
        if not _has_inputs(flags, values):  # only the prices were wanted
            return

    saved_plan = flags.source or flags.check
    baseline = None if saved_plan is None else read_baseline(saved_plan)
    sources = _read_sources(flags, values, baseline)
    if flags.open_page:
        _open_page(flags, prices, sources)
        return

    plan_inputs = inputs.merge([*sources.layers, *sources.command_line])
    capacity_plan = calculate(plan_inputs, price_list.load(prices), sources.charges)
    checked_plan = baseline if flags.check else None  # of one of --from, only the inputs are used
    planned = report(capacity_plan, prices.name, checked_plan)
    is_plotted = (flags.report is not None or out.quiet) and not plan_inputs.carries_only
    if is_plotted:
        planned = replace(planned, plots=pictures(capacity_plan, sources.sweep))
    _write_and_print(flags, capacity_plan, planned, checked_plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """What a plan is calculated from.

    layers        inputs from a saved plan, a release and reports; later ones win
    command_line  inputs from the command line, which win over these
    charges       request units of each operation
    sweep         a report of `bench ru` to plot, if there is one
    """

    layers: list[InputSource]
    command_line: list[InputSource]
    charges: Charges
    sweep: Report | None


def _read_sources(flags: PlanFlags, values: Mapping[str, str | None], baseline: Baseline | None) -> _Sources:
    """Read what a plan is calculated from: inputs of files, of a release and of the command line, and charges.

    values    inputs that have a flag, as texts; None if the flag is missing
    baseline  the saved plan of `--from` or `--check`, if any
    """
    reports = {path: read_report(path) for path in flags.from_report}
    return _Sources(
        layers=_file_inputs(flags, baseline, reports),
        command_line=_command_line_inputs(flags, values),
        charges=cosmos_charges.load(flags.charges or cosmos_charges.OURS),
        sweep=next((measured for measured in reports.values() if measured.kind == "ru"), None),
    )


def _has_inputs(flags: PlanFlags, values: Mapping[str, str | None]) -> bool:
    """Return whether there is anything to plan for, besides prices."""
    origins = (flags.set_inputs, flags.source, flags.check, flags.from_report, flags.from_release)
    return any((*origins, *values.values()))


def _write_and_print(
    flags: PlanFlags, capacity_plan: CapacityPlan, planned: Report, checked_plan: Baseline | None
) -> None:
    """Write the files that *flags* name, print the report, or one figure's formulas, and exit by the report's code.

    *checked_plan* is the saved plan of `--check`, whose bound a saved plan keeps, and whose file is not replaced by a
    plan that fails the check. Raises PlanMisused for an unknown figure, and Exit for a code other than 0.
    """
    if flags.why is not None and flags.why not in capacity_plan.figures:
        advice = did_you_mean(flags.why, capacity_plan.figures) or f"known are {', '.join(capacity_plan.figures)}"
        raise inputs.PlanMisused(f"--why: there is no figure {flags.why!r}; {advice}")

    if flags.report is not None:
        from hotplate.base import report_page  # an extra

        report_page.save(planned, flags.report)
    if planned.exit_code and _is_same_file(flags.save, flags.check):
        err.print(f"{flags.save} is kept: the plan fails the check against it; --save another file to replace it")
    elif flags.save is not None:
        bound_percent = BOUND_PERCENT if checked_plan is None else checked_plan.check.bound_percent
        write_file(flags.save, to_toml(capacity_plan, bound_percent))

    if flags.why is not None and not out.quiet:
        _print_formulas(capacity_plan, flags.why)
    else:
        shown = planned
        if flags.in_full:
            shown = in_full(planned)
        elif not out.quiet:
            shown = in_brief(planned)
        show_report(shown)
    if planned.exit_code:
        raise Exit(planned.exit_code)


def _is_same_file(saved: Path | None, checked: Path | None) -> bool:
    return saved is not None and checked is not None and saved.exists() and saved.samefile(checked)


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield the parameters of `plan`: a flag for each input with a panel (a group in the help), then `flags`."""
    parameter = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    for name, known in inputs.INPUT_FIELDS.items():
        if panel := known.metadata["panel"]:
            # Texts: all inputs are converted in one place.
            kind = Annotated[str | None, _flag(inputs.flag_help(known), panel, metavar=inputs.flag_metavar(known))]
            yield parameter(name, default=None, annotation=kind)
    yield parameter("flags", annotation=PlanFlags)


plan.__signature__ = inspect.Signature(list(_parameters()))  # type: ignore[attr-defined]  # what inspect.signature looks for


def _command_line_inputs(flags: PlanFlags, inputs_by_flag: Mapping[str, str | None]) -> list[InputSource]:
    """Return the inputs of `--set NAME=VALUE`, and of flags; later ones win.

    *inputs_by_flag* has the inputs that have a flag of their own, None if the flag is missing. Raises PlanMisused for a
    text without a name and a value.
    """
    from_set = dict[str, object]()
    for assignment in flags.set_inputs:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise inputs.PlanMisused(f"--set takes NAME=VALUE, not {assignment!r}")
        from_set[name.strip()] = value.strip()

    from_flags = {name: value for name, value in inputs_by_flag.items() if value is not None}
    return [InputSource("flag", from_set, "--set {name}"), InputSource("flag", from_flags, "--{flag}")]


def _open_page(flags: PlanFlags, prices: Path, sources: _Sources) -> None:
    """Serve the planner as a page until Ctrl-C; its form begins with the inputs of the command line."""
    from hotplate.bench.planner import planner_page  # loads aiohttp

    page = planner_page.PlannerPage(
        layers=sources.layers,
        prices=price_list.load(prices),
        prices_name=prices.name,
        charges=sources.charges,
        options=_option_words(flags, prices),
        sweep=sources.sweep,
    )
    query = {name: str(value) for layer in sources.command_line for name, value in layer.values.items()}
    planner_page.open_page(
        page,
        urlencode(query),
        lambda url: err.print(f"the planner's page, until Ctrl-C: {url}"),
        browser=err.is_terminal,
    )


def _option_words(flags: PlanFlags, prices: Path) -> list[str]:
    """Return the words of the options that a command for the same plan needs besides inputs, as ["--prices", "x.toml"].

    They name files and a release; *prices* is the file of prices in use.
    """
    options = [
        ("--from", flags.source or flags.check),
        *(("--from-report", path) for path in flags.from_report),
        ("--from-release", flags.from_release),
        ("--prices", None if prices == price_list.OURS else prices),
        ("--charges", flags.charges),
    ]
    words = list[str]()
    for option, value in options:
        if value is not None:
            words += [option, str(value)]
    return words


def _file_inputs(flags: PlanFlags, baseline: Baseline | None, reports: Mapping[Path, Report]) -> list[InputSource]:
    """Return the inputs of a saved plan, of a release's manifest, and of reports, in this order; later ones win."""
    layers = [baseline.layer] if baseline else []
    if flags.from_release is not None:
        from hotplate.releases import find_manifest  # loads the stores

        manifest = run_on_store(flags.from_release, lambda opened: find_manifest(opened, None))
        layers.append(inputs.from_release(manifest, redacted(flags.from_release)))
    for path, measured in reports.items():
        layers.append(inputs.from_report(measured, path))
    return layers


def _write_prices(region: str, currency: str, path: Path) -> None:
    require_file_path(path)
    missing = price_list.write_prices(region, currency, path, datetime.now(UTC).date())
    lacks = f"; Azure's list has no price under the expected names for: {', '.join(missing)}" if missing else ""
    err.print(f"wrote {path}{lacks}")


def _print_formulas(capacity_plan: CapacityPlan, name: str) -> None:
    """Print a figure with its formula and source, and below it the figures of the formula."""
    for depth, figure in explain(capacity_plan.figures, name):
        formula = f" = {figure.formula}" if figure.formula else ""
        source = f"   [{figure.source}]" if figure.source else ""
        out.print(f"{'  ' * depth}{figure.name}: {figure}{formula}{source}")
