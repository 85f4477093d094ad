"""Properties of every plan: formulas give values, cost is monotonic, saved plans round-trip."""

import ast
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from hotplate.base.report import format_value
from hotplate.bench.planner.formulas import FigureTable, PlanFigure, explain, round_up
from hotplate.bench.planner.inputs import CAPACITIES, DAY_SHAPES, INPUT_FIELDS, InputSource, merge
from hotplate.bench.planner.plan import CapacityPlan, break_even, calculate
from hotplate.bench.planner.plan_report import report
from hotplate.bench.planner.saved_plan import describe_growth, read_baseline, to_toml
from hotplate.bench.planner.serving_options import STORES
from tests.support.planning import a_plan, our_charges, our_prices
from tests.support.property import depths, explore

FUNCTIONS = {
    "ceil": lambda value: math.ceil(round(value, 9)),
    **{function.__name__: function for function in (max, min, round, round_up, math.log, math.sqrt)},
}
VARIED: dict[str, st.SearchStrategy[Any]] = {
    "users": st.integers(1, 50_000_000),
    "peak_rps": st.floats(0.1, 50_000),
    "items": st.integers(0, 1_000_000),
    "profile": st.sampled_from(sorted(DAY_SHAPES)),
    "growth_percent": st.floats(-5, 10),
    "months": st.integers(0, 24),
    "unknown_share": st.floats(0, 1),
    "zipf": st.floats(0, 1.4),
    "hit_rate": st.floats(0, 0.8),
    "hot_share": st.none() | st.floats(0, 0.2),
    "regions": st.integers(1, 4),
    "region_share": st.floats(0.3, 1),
    "consistency": st.sampled_from(["eventual", "strong"]),
    "list_bytes": st.none() | st.floats(1, 60_000),
    "list_length": st.integers(1, 200),
    "title_chars": st.sampled_from([0, 30]),
    "encoding": st.sampled_from(["json", "zstd"]),
    "publish_ru": st.none() | st.integers(100, 200_000),
    "refresh_hours": st.floats(1, 200),
    "kept": st.integers(0, 3),
    "have_ru": st.none() | st.integers(4, 1_000).map(lambda hundreds: 100 * hundreds),
    "redis_pod_rps": st.none() | st.floats(1, 10_000),
    "request_ms": st.none() | st.floats(0.1, 100),
    "capacity": st.sampled_from(CAPACITIES),
    "zones": st.integers(1, 3),
}
varied = st.fixed_dictionaries(VARIED).map(
    lambda inputs: inputs | {"region_share": max(inputs["region_share"], 1 / inputs["regions"])}
)
Inputs = dict[str, object]


def evaluated(figure: PlanFigure) -> float | None:
    """Work a formula out from the figures that it names; None for one that is words."""
    try:
        tree = ast.parse(figure.formula, mode="eval")
    except SyntaxError:
        return None
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    values = {operand.name: operand.value for operand in figure.operands}
    assert names <= values.keys() | FUNCTIONS.keys(), f"{figure.name} names what is no figure: {figure.formula}"
    return float(eval(compile(tree, figure.name, "eval"), {"__builtins__": {}} | FUNCTIONS, values))


LOAD_FIGURES = (
    "reads_ru", "serve_ru", "partitions", "cosmos_pods", "redis_pods", "files_pods", "control_ru",
    *(f"{option}_{sum_}" for option in STORES for sum_ in ("cost", "total")),
)  # fmt: skip

OF_SERVERLESS = ("serverless_cost", "serverless_total")


def possible(plan: CapacityPlan, name: str) -> float:
    """Return a figure's number, infinite if it is not possible."""
    figure = plan.figures[name]
    return math.inf if figure.obstacle else figure.number


@depths(25, 200)
def test_every_figure_has_a_formula_that_gives_its_value_or_a_source(examples: int) -> None:
    def check(inputs: Inputs) -> None:
        plan = a_plan(**inputs)
        counted = 0
        for figure in plan.figures.values():
            assert figure.formula or figure.source, figure.name
            if figure.formula:
                assert figure.operands, f"{figure.name} = {figure.formula}"
            if figure.formula and figure.is_number and (calculated := evaluated(figure)) is not None:
                assert calculated == pytest.approx(figure.value, rel=1e-6, abs=1e-9), figure.name
                counted += 1
        assert counted > 60
        assert {figure.name for _, figure in explain(plan.figures, "manual_total")} >= {
            "peak_rps",
            "users",
            "price_ru_hour",
        }
        for name in INPUT_FIELDS:
            if name in plan.figures and name not in plan.sourced.sources:
                assert plan.figures[name].source.startswith("assumed")

    explore(check, examples, inputs=varied)


def test_inputs_from_a_file_named_assumed_are_not_assumed() -> None:
    values: dict[str, object] = {"users": 1_000_000, "peak_rps": 500, "zipf": 0.9, "kept": 3}
    texts = []
    for file in ("load.toml", "assumed.toml"):
        plan = calculate(merge([InputSource(file, values)]), our_prices(), our_charges())
        shown = report(plan, "prices.toml")
        texts.append((shown.sentence, shown.method))
        assert not plan.sourced.assumed & values.keys()
    assert texts[0] == texts[1]


@depths(25, 200)
def test_cost_never_falls_with_load_size_or_regions_nor_rises_with_a_cache(examples: int) -> None:
    def check(inputs: Inputs, more: float, times: int) -> None:
        plan = a_plan(**inputs)
        then = plan.with_inputs(peak_rps=plan.inputs.peak_rps * more)
        for name in LOAD_FIGURES:
            assert possible(then, name) >= possible(plan, name) * (1 - 1e-9), name
        then = plan.with_inputs(regions=plan.inputs.regions * times)
        for name in ("manual_cost", "redis_cost", "cosmos_pods_cost", "redis_pods_cost", "files_pods_cost"):
            assert possible(then, name) == pytest.approx(times * possible(plan, name)), name
        # Reached rates are spread over the regions; provisioned rates count in each.
        assert possible(then, "autoscale_cost") <= times * possible(plan, "autoscale_cost") + 1e-6
        larger = plan.with_inputs(list_bytes=plan.number("stored_bytes") * 3 + 1)
        assert possible(larger, "manual_cost") >= possible(plan, "manual_cost") - 1e-6
        # More users spread the reads, unless the share of the busiest one stays.
        even = plan.with_inputs(hot_share=inputs["hot_share"] or 0.0)
        then = even.with_inputs(users=round(even.inputs.users * more) + 1)
        for name in LOAD_FIGURES:
            # Serverless can become possible: a container has more RU/s if it holds more data.
            can_fall = math.isinf(possible(even, "serverless_cost")) and name in OF_SERVERLESS
            assert can_fall or possible(then, name) >= possible(even, name) * (1 - 1e-9), name
        cached = plan.with_inputs(hit_rate=plan.inputs.hit_rate + 0.1)
        assert possible(cached, "reads_ru") <= possible(plan, "reads_ru") + 1e-6

    explore(check, examples, inputs=varied, more=st.floats(1, 100), times=st.integers(2, 4))


OTHER_VALUES: dict[str, object] = {
    "users": 5_000_000, "peak_rps": 12_000.0, "items": 3_000_000, "profile": "evening", "growth_percent": 3.0,
    "months": 5, "unknown_share": 0.5, "zipf": 0.5, "hit_rate": 0.4, "hot_share": 0.05, "regions": 3,
    "region_share": 0.9, "consistency": "strong",
    "list_length": 90, "list_bytes": 9_000.0, "item_id_chars": 30.0,
    "user_id_chars": 40.0, "title_chars": 20.0, "encoding": "zstd", "zstd_share": 0.6, "refresh_hours": 5.0,
    "window_hours": 0.1, "publish_ru": 70_000, "kept": 4, "system_bytes": 900, "ru_utilisation": 0.4,
    "capacity": "autoscale", "have_ru": 9_000, "request_ms": 70.0, "pod_concurrency": 3, "pod_utilisation": 0.2,
    "cosmos_cpu_us": 700.0, "redis_cpu_us": 700.0, "files_cpu_us": 700.0, "pod_cpus": 3.0, "cpu_memory_gb": 0.5,
    "cosmos_pod_rps": 90.0, "redis_pod_rps": 90.0, "files_pod_rps": 90.0, "min_pods": 40, "zones": 3, "redis_nodes": 3,
    "redis_reserved": 0.6, "redis_utilisation": 0.05, "train_nodes": 4, "train_hours": 3.0, "train_cpus": 20.0,
    "train_node_hour": 7.0, "ru_factor": 1.25, "gateway_hit_rate": 0.3, "gateway_month": 90.0, "cluster_month": 70.0,
}  # fmt: skip


@depths(8, 100)
def test_every_figure_is_explained_by_each_input_that_changes_it(examples: int) -> None:
    assert OTHER_VALUES.keys() == INPUT_FIELDS.keys()

    def check(inputs: Inputs) -> None:
        plan = a_plan(**inputs)
        for name, value in OTHER_VALUES.items():
            changed = plan.with_inputs(**{name: value})
            if name not in plan.figures:
                plan, changed = changed, plan
            for figure in plan.figures.values():
                if figure.name != name and figure.value != getattr(changed.figures.get(figure.name), "value", None):
                    reached = {operand.name for _, operand in explain(plan.figures, figure.name)}
                    assert name in reached, f"{figure.name} changes with {name}"

    explore(check, examples, inputs=varied)


@depths(5, 100)
def test_impossible_stores_are_never_recommended_or_priced(examples: int) -> None:
    def check(inputs: Inputs, more: float) -> None:
        plan = a_plan(**inputs).with_inputs(peak_rps=inputs["peak_rps"] * more)  # type: ignore[operator]  # a float
        planned = report(plan, "prices.toml")
        for option, obstacle in plan.obstacles.items():
            assert obstacle in planned.verdicts["no"]
            assert planned.row(f"in all, {plan.prices.currency}/month", option).value is None  # type: ignore[union-attr]
        words = {"manual": "with fixed RU/s", "autoscale": "with autoscale", "serverless": "as serverless"}
        for mode in plan.obstacles.keys() & words.keys():
            assert f"Cosmos DB {words[mode]}" not in planned.sentence
        if "redis" in plan.obstacles:
            assert "Redis, " not in planned.sentence
        for rates in break_even(plan):
            inside = plan.with_inputs(peak_rps=math.sqrt(max(rates.low, 0.01) * (rates.high or 1e7)))
            assert not inside.figures["redis_total"].obstacle
            assert inside.cheapest is not None

    explore(check, examples, inputs=varied, more=st.sampled_from([1, 30, 1_000]))


def test_only_possible_mode_is_the_cheapest() -> None:
    plan = a_plan(users=1_000_000, peak_rps=10, publish_ru=100, refresh_hours=1)
    assert plan.obstacles.keys() == {"manual", "autoscale"}
    assert plan.cheapest == "serverless"


def test_figures_are_written_once_and_texts_are_no_numbers() -> None:
    table = FigureTable()
    table.add_value("encoding", "zstd", "", "given")
    with pytest.raises(ValueError, match="encoding is a figure of this plan already"):
        table.add_value("encoding", "json", "", "given")
    with pytest.raises(TypeError, match="redis_cost is 'not possible: memory: "):
        a_plan(users=1_000_000_000).number("redis_cost")


def test_unit_of_one_is_a_singular_word_or_a_symbol() -> None:
    inputs = {declared.metadata["unit"] for declared in INPUT_FIELDS.values()}
    figures = {figure.unit for figure in a_plan(have_ru=400, request_ms=5).figures.values()}
    units = {unit for unit in inputs | figures if unit.isalpha()} - {"share"}
    symbols = {"GB", "RU", "USD", "ms", "vCPU", "µs"}
    singular = {unit: unit if unit in symbols else unit.removesuffix("s") for unit in units}
    assert {unit: format_value(1, unit) for unit in units} == {unit: f"1 {name}" for unit, name in singular.items()}


@depths(25, 200)
def test_saved_plan_round_trips_without_growth(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    def check(inputs: Inputs) -> None:
        plan = a_plan(**inputs)
        path = tmp_path_factory.getbasetemp() / "saved.toml"
        path.write_text(to_toml(plan))
        baseline = read_baseline(path)
        assert merge([baseline.layer]).inputs == plan.inputs
        assert baseline.check.bound_percent == 10
        assert [*describe_growth(plan, baseline)] == []

    explore(check, examples, inputs=varied)


def test_last_source_wins_and_stale_measurements_are_dropped() -> None:
    file = InputSource("plan.toml", {"users": 10, "peak_rps": 1, "list_length": 20}, "{name} in plan.toml")
    release = InputSource("measured", {"users": 7, "list_bytes": 300.0, "encoding": "zstd"})
    both = merge([file, release])
    assert (both.inputs.users, both.inputs.list_bytes, both.source("users")) == (7, 300, "measured")
    flagged = merge([file, release, InputSource("flag", {"list_length": 10, "users": "5"})])
    assert (flagged.inputs.users, flagged.inputs.list_bytes) == (5, None)
    assert "list_bytes" not in flagged.sources


def test_measured_size_keeps_its_place_after_a_new_measurement() -> None:
    """The order of inputs is that of a saved plan, which should not change with a value."""
    file = InputSource("plan.toml", {"list_bytes": 300.0, "users": 10, "peak_rps": 1}, "{name} in plan.toml")
    release = InputSource("measured", {"list_bytes": 200.0, "encoding": "zstd"})
    assert [*merge([file, release]).sources] == ["list_bytes", "users", "peak_rps", "encoding"]


def test_growth_within_the_bound_passes_and_a_lost_option_does_not(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    plan = a_plan(peak_rps=700)
    path.write_text(to_toml(plan))
    baseline = read_baseline(path)
    assert not [
        line for line in describe_growth(plan.with_inputs(peak_rps=770), baseline) if line.startswith("serve_ru")
    ]
    (gone,) = [
        line for line in describe_growth(plan.with_inputs(regions=2), baseline) if line.startswith("serverless_cost")
    ]
    assert "is not possible: regions: 2" in gone
