"""`hotplate plan` from end to end: output, files, measured inputs, and exit codes."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hotplate.base.report import Report, Row, to_json
from hotplate.bench.figure_names import read_report
from hotplate.bench.planner.inputs import INPUT_FIELDS, InputSource, PlanMisused, from_report, merge
from hotplate.bench.planner.prices import OURS, PricesUnreadable, load
from tests.support.command import hotplate
from tests.support.paths import ROOT
from tests.support.service import a_list, published

LEAST = ("--users", "1000000", "--peak-rps", "500")


def plan(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return hotplate("plan", *arguments, **settings)


def planned(*arguments: str | Path, **settings: str) -> dict[str, Any]:
    done = plan(*arguments, "--json", **settings)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def values(facts: dict[str, Any]) -> dict[str, Any]:
    return {row["name"]: row["value"] for row in facts["inputs"] + facts["figures"]}


def sources(facts: dict[str, Any]) -> dict[str, str]:
    return {row["name"]: row["source"] for row in facts["inputs"]}


def test_a_flag_wins_over_the_environment_and_both_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text("users = 1_000\npeak_rps = 10\nkept = 3\nprofile = [" + "1, " * 23 + "4]\n")
    facts = planned("--from", file, "--users", "2000", HOTPLATE_PLAN_PEAK_RPS="20")
    figures = values(facts)
    where = sources(facts)
    assert (figures["users"], figures["peak_rps"], figures["kept"]) == (2_000, 20, 3)
    assert (where["users"], where["kept"], where["months"]) == ("flag", "shop.toml", "assumed: today's load")
    assert figures["profile"].startswith("1, 1, 1")
    assert values(planned(*LEAST, "--profile", "evening"))["profile"].startswith("evening: 0.35, 0.2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*LEAST, "--set", "kept"], "--set takes NAME=VALUE, not 'kept'"),
        (
            [*LEAST, "--set", "speed=1"],
            "--set speed is not an input of a plan; remove it, or use one of users, ",
        ),
        ([*LEAST, "--growth-percent", "100", "--months", "120"], "make 1.33e+36 times the load, more than"),
        ([*LEAST, "--set", "region=1"], "--set region is not an input of a plan; did you mean regions?"),
        ([*LEAST, "--why", "serve_r"], "there is no figure 'serve_r'; did you mean serve_ru?"),
        ([*LEAST, "--regions", "1,000"], "'1,000', and must be a whole number, as 1500, 1.5k or 2M"),
        ([*LEAST, "--regions", "3", "--set", "region_share=0.3"], "3 regions answer 90% of the requests"),
        ([*LEAST, "--prices", "/none.toml"], "/none.toml: No such file"),
        ([*LEAST, "--from-release", "ftp://x"], "is not the URL of a store"),
        ([*LEAST, "--out", "/nowhere/at/all"], "no folder /nowhere/at"),
        (["--from", "/a", "--check", "/b"], "leave out --from"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400"])
def test_infinite_numbers_are_refused_as_any_input(number: str) -> None:
    for name, declared in INPUT_FIELDS.items():
        if declared.metadata["choices"]:
            continue
        value = ",".join([number] + ["1"] * 23) if name == "profile" else number
        with pytest.raises(PlanMisused, match=f"{name} "):
            merge([InputSource("flag", {"users": 1, "peak_rps": 1, name: value})])
    with pytest.raises(PlanMisused, match="the busiest hour of profile is 1e"):
        merge([InputSource("flag", {"users": 1, "profile": [1e300] * 24})])


@pytest.mark.parametrize("line", ["bound_percent = inf", "bound_percent = nan", "[check.agreed]\nserve_ru = inf"])
def test_saved_plan_with_infinite_numbers_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(f"users = 1\npeak_rps = 1\n[check]\n{line}\n")
    done = plan("--check", file)
    assert done.returncode == 2
    assert "Expected `float` " in done.stderr


def test_saved_plan_check_fails_after_growth(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    assert plan(*LEAST, "--save", file).returncode == 0
    same = plan("--check", file)
    assert same.returncode == 0
    assert same.stdout.startswith("17 of 17 figures are inside 10 % of plan.toml.\n")
    more = plan("--check", file, "--peak-rps", "700")
    assert more.returncode == 3
    assert "serve_ru grew from 800 RU/s to 1,000 RU/s (+25%)" in more.stdout
    first_line = " ".join(more.stdout.split("LOOK OUT")[0].split())
    assert first_line.startswith("reads_ru grew from ")  # it began with the figures that are inside
    assert first_line.endswith(" figures are inside 10 % of plan.toml.")
    as_json = plan("--check", file, "--peak-rps", "700", "--json")
    assert as_json.returncode == 3
    assert "serve_ru" in " ".join(json.loads(as_json.stdout)["broken"])
    saved = file.read_text()
    same_file = tmp_path / "." / ".." / tmp_path.name / "plan.toml"
    kept = plan("--check", file, "--peak-rps", "700", "--save", same_file)
    assert kept.returncode == 3
    assert "plan.toml is kept" in kept.stderr
    assert file.read_text() == saved
    assert plan("--check", file, "--save", file).returncode == 0
    file.write_text(file.read_text().replace("bound_percent = 10", "bound_percent = 80"))
    assert plan("--check", file, "--peak-rps", "700").returncode == 0
    bare = tmp_path / "bare.toml"
    bare.write_text("users = 1\npeak_rps = 1\n")
    assert plan("--check", bare).returncode == 2


def test_a_release_gives_its_own_sizes(tmp_path: Path) -> None:
    lists = {f"user:{number:03}": a_list(*(f"i{number}-{place}" for place in range(20))) for number in range(50)}
    published(tmp_path / "store", lists)
    facts = planned("--peak-rps", "100", "--from-release", f"file://{tmp_path}/store")
    figures = values(facts)
    assert figures["users"] == 50
    assert (figures["encoding"], figures["user_id_chars"]) == ("json", pytest.approx(3, rel=0.05))
    mean = sum(map(len, lists.values())) / len(lists)
    assert figures["list_bytes"] == pytest.approx(mean, rel=0.05)  # the popular list is in the mean, too
    assert figures["stored_bytes"] == figures["list_bytes"]
    assert "measured: manifest of " in sources(facts)["list_bytes"]
    assert f"file://{tmp_path}/store" in sources(facts)["users"]
    overridden = planned("--peak-rps", "1", "--users", "9", "--from-release", f"file://{tmp_path}/store")
    assert values(overridden)["users"] == 9
    empty = plan("--peak-rps", "1", "--from-release", f"file://{tmp_path / 'empty'}")
    assert empty.returncode == 1
    assert empty.stderr.count("\n") == 1


def measured(path: Path, *rows: Row, kind: str = "http", **more: Any) -> Path:  # noqa: ANN401 -- fields of a report
    """Write a report of `hotplate bench`; without rows, of 200 requests/s answered after 2 ms."""
    facts = {"highest rate": ("/s", 200.0), "p50": ("us", 2e3), "p99": ("us", 4e3), "popular lists": ("share", 0.005)}
    report_rows = rows or tuple(Row("files", name, unit, value) for name, (unit, value) in facts.items())
    machine = {"cpu": "EPYC", "date": "2026-11-25"}
    origin = {"configuration": {"store": "redis://cache/0"}, "extra": {"subject": "emulator"}, **more}
    path.write_text(json.dumps(to_json(Report(kind=kind, sentence="", rows=report_rows, machine=machine, **origin))))
    return path


def test_report_replaces_assumptions_about_a_pod(tmp_path: Path) -> None:
    path = measured(tmp_path / "bench.json")
    facts = planned(*LEAST, "--from-report", path)
    figures = values(facts)
    assert figures["redis_pod_rps"] == 200
    assert "request_ms" not in figures
    assert figures["redis_pods_by_capacity"] == 5  # 500 / 200 / 0.6 = 4.2
    assert (figures["cosmos_pods"], figures["files_pods"]) == (2, 2)  # by their own CPU
    assert sources(facts)["redis_pod_rps"] == "measured: bench.json, EPYC, 2026-11-25"
    overridden = values(planned(*LEAST, "--from-report", path, "--set", "redis_pod_rps=1000"))
    assert overridden["redis_pods_by_capacity"] == 1


def test_highest_rate_of_a_search_is_used(tmp_path: Path) -> None:
    rows = [
        Row("files", "rate", "/s", 9_000.0), Row("files", "highest rate", "/s", 1_500.0, note="at least"),
        Row("redis", "highest rate", "/s", 900.0), Row("files", "p99", "us", 4_000.0),
        Row("redis", "p99", "us", 2_000.0),
    ]  # fmt: skip
    path = measured(tmp_path / "bench.json", *rows)
    assert from_report(read_report(path), path).values == {"redis_pod_rps": 1_500}
    assert from_report(read_report(path), path).source.startswith("measured: at least ")
    offered = measured(tmp_path / "offered.json", rows[0], Row("files", "p50", "us", 2_000.0))
    with pytest.raises(PlanMisused, match="has nothing that a plan can use"):
        from_report(read_report(offered), offered)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"broken": ("84.7 % popular lists",)}, "84.7 % popular"),
        ({"failures": ("redis did not answer",)}, "redis did not answer"),
        ({"interrupted": True}, "was stopped"),
        ({"kind": "stores"}, "has nothing that a plan can use"),
        (
            {"configuration": {}},
            "measure again: the service read an unknown store, and not Cosmos DB, Redis or files; give --store",
        ),
        (
            {"configuration": {"store": "cosmos+http://localhost:8081/x"}},
            "measure again: the service read cosmos+http://localhost:8081/x, and not Cosmos DB",
        ),
    ],
)
def test_invalid_report_is_refused(more: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    done = plan(*LEAST, "--from-report", measured(tmp_path / "bench.json", **more))
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_comparison_of_stores_gives_the_cpu_of_a_request(tmp_path: Path) -> None:
    cpus = {"file://": 30.0, "redis://": 42.0, "cosmos": 70.0}
    cpus |= {"Cosmos DB by SDK": 900.0, "Redis by redis-py": 90.0}
    rows = [Row(name, figure, "us", us) for name, us in cpus.items() for figure in ("CPU a request", "p50")]
    path = measured(tmp_path / "stores.json", *rows, kind="stores")
    assert from_report(read_report(path), path).values == {
        "files_cpu_us": 30.0,
        "redis_cpu_us": 42.0,
        "cosmos_cpu_us": 70.0,
    }


def test_cpu_of_an_emulated_store_is_no_input(tmp_path: Path) -> None:
    rows = [Row(name, "CPU a request", "us", 70.0) for name in ("Cosmos emulator", "Redis")]
    path = measured(tmp_path / "stores.json", *rows, kind="stores", emulated=("Cosmos emulator",))
    figures = planned(*LEAST, "--from-report", path)
    assert values(figures)["redis_cpu_us"] == 70
    assert sources(figures)["cosmos_cpu_us"] == "assumed: 1.25 times 96.9 measured, on an emulator"
    only = measured(tmp_path / "only.json", rows[0], kind="stores", emulated=("Cosmos emulator",))
    refused = plan(*LEAST, "--from-report", only)
    assert refused.returncode == 2
    assert "has nothing that a plan can use; Cosmos emulator was emulated" in refused.stderr


def test_shipped_comparison_of_stores_gives_no_cpu_of_an_emulator() -> None:
    path = ROOT / "tools" / "figures" / "stores.json"
    assert from_report(read_report(path), path).values.keys() == {"files_cpu_us", "redis_cpu_us"}


def test_reports_of_several_kinds_are_read_and_a_sweep_is_plotted(tmp_path: Path) -> None:
    sweep = [
        row
        for ru, p99_us in ((400.0, 9e3), (1_000.0, None))
        for row in (
            Row(f"{ru:,.0f} RU/s", "reads/s", "", ru), Row(f"{ru:,.0f} RU/s", "p99", "us", p99_us, mark="*"),
            Row(f"{ru:,.0f} RU/s", "RU/s provisioned", "", ru, main=False),
        )
    ]  # fmt: skip
    reports = "--from-report", measured(tmp_path / "pod.json"), "--from-report"
    facts = planned(*LEAST, *reports, measured(tmp_path / "ru.json", *sweep, kind="ru"))
    assert values(facts)["redis_pod_rps"] == 200
    plot, below = facts["plots"][-2:]
    assert (plot["x"], plot["y"], below["y"]) == ("RU/s provisioned", "reads/s", "p99, assumed")
    assert plot["curves"][0]["x"] == plot["curves"][0]["y"] == [400, 1_000]
    assert below["curves"][0]["y"] == [9_000, None]
    assert list(plot["marks"].values()) == ["this plan"]


def test_prices_are_replaced_by_a_file_and_each_has_a_source(tmp_path: Path) -> None:
    ours = load()
    for price in (ours["ru_hour"], ours["cpu_hour"], *(size.node_hour for size in ours.redis)):
        assert price.source
        assert price.date
    assert ours.ru_hours(400 * 2) == pytest.approx(0.064)
    assert ours.ru_hours(400, autoscale=True, regions=2) == pytest.approx(0.032 * 1.5 * 2)
    yours = tmp_path / "yours.toml"
    yours.write_text(OURS.read_text().replace("amount = 0.008", "amount = 0.016").replace('"USD"', '"EUR"'))
    facts = planned(*LEAST, "--prices", yours)
    doubled = values(facts)
    before = values(planned(*LEAST))
    assert doubled["manual_cost"] == pytest.approx(2 * before["manual_cost"] - before["storage_cost"])
    shown = plan(*LEAST, "--prices", yours, "--all").stdout
    assert "82.0 EUR/month in all" in " ".join(shown.split())
    assert "prices in EUR from yours.toml" in shown
    assert "USD" not in shown


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("amount = 0.008", 'amount = "much"', r"Expected `float`, got `str` - at `\$.ru_hour.amount`"),
        ("amount = 0.008", "usd = 0.008", r"Object missing required field `amount` - at `\$.ru_hour`"),
        ("amount = 0.008", "amount = nan", r"Expected `float` >= 0.0 - at `\$.ru_hour.amount`"),
        ("gb = 960", "gb = inf", r"Expected `float` < 1\d+.0 - at `\$.redis\[\d+\].gb`"),
        ("gb = 960", "gb = nan", r"Expected `float` > 0.0 - at `\$.redis\[\d+\].gb`"),
        ('name = "B3"', 'name = "B1"', "two sizes of Redis have the same name"),
        ("shards = 6", "shards = 0", r"Expected `int` >= 1 - at `\$.redis\[\d+\].shards`"),
        ('currency = "USD"', 'currency = "$"', "matching regex"),
        ("date = 2022-03-31", 'date = "last year"', r"Invalid RFC3339 encoded date - at `\$.ru_hour.date`"),
    ],
)
def test_malformed_price_file_is_refused(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OURS.read_text().replace(old, new))
    with pytest.raises(PricesUnreadable, match=sentence):
        load(path)


@pytest.mark.parametrize(("old", "new"), [("missing = 1.0", "missing = nan"), ("[1, 5.00]", "[1, inf]")])
def test_infinite_charges_are_refused(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "charges.toml"
    path.write_text((ROOT / "stores" / "cosmos" / "charges.toml").read_text().replace(old, new))
    done = plan(*LEAST, "--charges", path)
    assert done.returncode == 2
    assert "charges must be finite numbers, 0 or more" in done.stderr


def test_reads_without_a_charge_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "charges.toml"
    path.write_text((ROOT / "stores" / "cosmos" / "charges.toml").read_text().replace("missing = 1.0", "missing = 0.0"))
    done = plan(*LEAST, "--set", "unknown_share=1", "--charges", path)
    assert done.returncode == 2
    assert "charges of reads must be more than 0" in done.stderr


def test_missing_prices_leave_out_dependent_figures(tmp_path: Path) -> None:
    yours = tmp_path / "yours.toml"
    text = OURS.read_text().partition("[redis_gb_hour]")[0]
    yours.write_text(re.sub(r"\[serverless_million_ru\]\n(?:[^\[\n].*\n|\n)*", "", text))
    figures = values(planned(*LEAST, "--prices", yours))
    assert "no sizes of Redis" in figures["redis_cost"]
    assert "no serverless_million_ru" in figures["serverless_cost"]


GUIDE = (ROOT / "docs" / "sizing.md").read_text()
# A command, a sentence with "prints", and an excerpt of the output, in which … stands for lines that are left out.
SHOWN = re.compile(r"^    hotplate (plan (?:.*\\\n)*.*)\n\n(?:prints.*\n)(?:.+\n)*\n((?:    .+\n)+)", re.MULTILINE)
EXAMPLES = SHOWN.findall(GUIDE)


@pytest.mark.parametrize(("command", "excerpt"), EXAMPLES)
def test_guide_commands_print_the_shown_output(command: str, excerpt: str, tmp_path: Path) -> None:
    arguments = command.replace("\\\n", "").replace("--out shop", f"--out {tmp_path / 'shop'}").split()[1:]
    printed = " ".join(plan(*arguments).stdout.split())
    at = 0
    assert printed.startswith(" ".join(excerpt.partition("…")[0].split()))
    for part in excerpt.split("…"):
        shown = " ".join(part.split())
        assert shown in printed[at:]
        at = printed.index(shown, at) + len(shown)


def test_guide_shows_the_output_of_main_commands() -> None:
    assert len(EXAMPLES) >= 5
