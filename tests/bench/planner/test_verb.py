"""`hotplate plan` from end to end: what it prints and writes, what it takes from measurements, when it says no."""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import MISSING
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.planner.figures import format_value
from hotplate.bench.planner.inputs import KNOWN, InputSource, PlanMisused, from_report, merge
from hotplate.bench.planner.page import page
from hotplate.bench.planner.prices import OURS, PricesUnreadable, load
from hotplate.bench.planner.review import review
from hotplate.bench.report.report import Report, series
from hotplate.stores.extras import install_command
from tests.support.command import hotplate
from tests.support.page import Outline, opened
from tests.support.paths import ROOT
from tests.support.planning import a_plan
from tests.support.service import a_list, publish_lists
from tests.support.virtual import simulate

LEAST = ("--users", "1000000", "--peak-rps", "500")


def plan(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return hotplate("plan", *arguments, **settings)


def planned(*arguments: str | Path, **settings: str) -> dict[str, Any]:
    done = plan(*arguments, "--json", **settings)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def values(facts: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each["value"] for each in facts["inputs"] + facts["figures"]}


def sources(facts: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["source"] for each in facts["inputs"]}


def test_a_person_sees_figures_costs_assumptions_and_what_to_look_out_for() -> None:
    done = plan(*LEAST, "--profile", "evening", "--zipf", "0.9")
    assert done.returncode == 0, done.stderr
    for shown in (
        "serve_ru", "Cosmos DB, serverless", "Redis and pods", "is cheaper: ", "requests/s on, Redis",
        "saves, USD/month", "autoscale, not manual", "assumed: items 0 items", "list_length 20 items",
        "were not checked; put yours in a file for --prices", "years old", "months old",
        "not priced: reserved capacity", "it is a tie, because prices are not known better",
    ):  # fmt: skip
        assert shown in done.stdout
    assert "have_ru" not in done.stdout
    cost = next(line for line in done.stdout.splitlines() if line.rstrip().endswith("manual_cost"))
    assert re.search(r" (\d\d|\d\d0) \((\d\d|\d\d0) - (\d\d|\d\d0)\) USD/month", cost), cost


@pytest.mark.parametrize(("written", "users"), [("20M", 20_000_000), ("1.5k", 1_500), ("1B", 10**9), ("2_000", 2_000)])
def test_numbers_come_as_people_write_them(written: str, users: int) -> None:
    assert merge([InputSource("flag", {"users": written, "peak_rps": "2k"}, "--{flag}")]).inputs.users == users


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1820.41, "1,800"), (184.16, "180"), (23.36, "23"), (9.99, "10"), (0.734, "0.73"), (0, "0"), (45_552, "46,000")],
)
def test_money_has_two_digits(value: float, shown: str) -> None:
    assert format_value(value, "USD/month") == f"{shown} USD/month"


def test_a_price_says_how_old_it_is_and_how_far_off_it_may_be() -> None:
    ours = load()
    assert ours.ru_hour.age(date(2026, 11, 22)) == "4.6 years old"
    assert ours.redis[0].hour.age(date(2026, 11, 22)) == "3 months old"
    assert (ours.ru_hour.within, ours.redis[0].hour.within, ours.cpu_hour.within) == (0.1, 0.2, 0.5)
    assert ours.moved(1).ru_hour.usd == pytest.approx(0.0088)
    assert ours.moved(-1).autoscale_factor.usd == 1.5


def test_one_figure_is_explained() -> None:
    done = plan(*LEAST, "--why", "serve_ru")
    lines = done.stdout.splitlines()
    assert lines[0] == "serve_ru: 800 RU/s = max(round_up(reads_ru, 100), least_ru)"
    assert any(line.strip() == "peak_rps: 500 requests/s   [flag]" for line in lines)
    assert any("the file of charges" in line for line in lines)
    assert "there is no figure 'speed'" in plan(*LEAST, "--why", "speed").stderr


def test_a_flag_wins_over_the_environment_and_both_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.toml"
    file.write_text("users = 1_000\npeak_rps = 10\nkept = 3\nprofile = [" + "1, " * 23 + "4]\n")
    facts = planned("--from", file, "--users", "2000", HOTPLATE_PLAN_PEAK_RPS="20")
    found, where = values(facts), sources(facts)
    assert (found["users"], found["peak_rps"], found["kept"]) == (2_000, 20, 3)
    assert (where["users"], where["kept"], where["months"]) == ("flag", "shop.toml", "assumed: today's load")
    assert found["profile"].startswith("1, 1, 1")
    assert values(planned(*LEAST, "--profile", "evening"))["profile"].startswith("evening: 0.35, 0.2")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--users", "x", "--peak-rps", "1"], "--users is 'x', and must be a whole number"),
        ([*LEAST, "--set", "kept"], "--set takes NAME=VALUE, not 'kept'"),
        ([*LEAST, "--set", "kept=-1"], "--set kept is -1, and must be at least 0"),
        ([*LEAST, "--set", "speed=1"], "--set speed is not an input of a plan"),
        ([*LEAST, "--prices", "/none.toml"], "/none.toml: No such file"),
        ([*LEAST, "--charges", "/none.toml"], "/none.toml: No such file"),
        ([*LEAST, "--from-report", "/none.json"], "/none.json: No such file"),
        ([*LEAST, "--from-release", "ftp://x"], "is not the URL of a store"),
        ([*LEAST, "--out", "/nowhere/at/all"], "no folder /nowhere/at"),
        (["--from", "/a", "--check", "/b"], "leave --from out"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    done = plan(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_saved_plan_is_checked_and_fails_when_the_need_has_grown(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    assert plan(*LEAST, "--save", file).returncode == 0
    same = plan("--check", file)
    assert (same.returncode, same.stdout) == (0, "15 of 15 figures are inside 10 % of plan.toml\n")
    more = plan("--check", file, "--peak-rps", "700")
    assert more.returncode == 3
    assert "serve_ru grew from 800 RU/s to 1,000 RU/s (+25%)" in more.stdout
    as_json = plan("--check", file, "--peak-rps", "700", "--json")
    assert as_json.returncode == 3
    assert "serve_ru" in [each["name"] for each in json.loads(as_json.stdout)["grown"]]
    file.write_text(file.read_text().replace("bound_percent = 10", "bound_percent = 80"))
    assert plan("--check", file, "--peak-rps", "700").returncode == 0
    bare = tmp_path / "bare.toml"
    bare.write_text("users = 1\npeak_rps = 1\n")
    assert plan("--check", bare).returncode == 2


def test_only_the_page_needs_the_extra_of_the_bench(tmp_path: Path) -> None:
    program = """import sys
for name in ("numpy", "matplotlib", "hdrh", "httptools"):
    sys.modules[name] = None
from hotplate.cli.main import main
main()"""
    command = [sys.executable, "-c", program, "plan", *LEAST]
    saved = subprocess.run([*command, "--save", tmp_path / "plan.toml"], capture_output=True, timeout=60, check=False)
    assert saved.returncode == 0, saved.stderr
    page = subprocess.run([*command, "--out", tmp_path / "plan"], capture_output=True, timeout=60, check=False)
    assert page.returncode == 1
    assert install_command("bench").encode() in page.stderr


def test_a_release_gives_its_own_sizes(tmp_path: Path) -> None:
    lists = {f"user:{number:03}": a_list(*(f"i{number}-{place}" for place in range(20))) for number in range(50)}
    asyncio.run(publish_lists(tmp_path / "store", lists))
    facts = planned("--peak-rps", "100", "--from-release", f"file://{tmp_path / 'store'}")
    found = values(facts)
    assert found["users"] == 50
    assert found["encoding"] == "json"
    mean = sum(map(len, lists.values())) / len(lists)
    assert found["list_bytes"] == pytest.approx(mean, rel=0.05)  # the popular list is in the mean, too
    assert found["stored_bytes"] == found["list_bytes"]
    assert "measured: manifest of " in sources(facts)["list_bytes"]
    assert f"file://{tmp_path / 'store'}" in sources(facts)["users"]
    given = planned("--peak-rps", "1", "--users", "9", "--from-release", f"file://{tmp_path / 'store'}")
    assert values(given)["users"] == 9
    empty = plan("--peak-rps", "1", "--from-release", f"file://{tmp_path / 'empty'}")
    assert empty.returncode == 1
    assert empty.stderr.count("\n") == 1


def measured_report(path: Path, **extra: object) -> Path:
    """Write a report of 200 requests/s, answered after 2 ms."""
    load = Load(url="http://simulated", requests=Gets("/"), rate=200, duration_s=2)
    rounds = [simulate(load, lambda arrival_s: arrival_s + 0.002)]
    made = Report(kind="http", configuration={"url": "http://x"}, series=(series("x", rounds),), extra=extra)
    path.write_text(json.dumps(made.to_json()))
    return path


def test_a_report_takes_the_place_of_what_is_assumed_of_a_pod(tmp_path: Path) -> None:
    path = measured_report(tmp_path / "bench.json")
    facts = planned(*LEAST, "--from-report", path)
    found = values(facts)
    assert found["pod_rps"] == pytest.approx(200)
    assert found["request_ms"] == pytest.approx(2, rel=0.05)
    assert found["pods_by_capacity"] == 5  # 500 / 200 / 0.6 = 4.2
    assert sources(facts)["pod_rps"].startswith("measured: bench.json, ")
    assert values(planned(*LEAST, "--from-report", path, "--set", "pod_rps=1000"))["pods_by_capacity"] == 1
    assert values(planned(*LEAST, "--from-report", path, "--p99-ms", "5"))["pod_rps"] == pytest.approx(200)
    refused = plan(*LEAST, "--from-report", path, "--p99-ms", "1")
    assert refused.returncode == 2
    assert "kept a p99 of 1 ms" in refused.stderr


def test_a_round_in_which_the_generator_was_late_does_not_make_requests_long(tmp_path: Path) -> None:
    path = measured_report(tmp_path / "bench.json")
    facts = json.loads(path.read_text())
    (one,) = facts["series"][0]["rounds"]
    sent = [{**one, "sent_latency_us": {**one["sent_latency_us"], "mean": mean_us}} for mean_us in (2e3, 2.1e3, 9e3)]
    late = {**sent[0], "latency_us": {**one["latency_us"], "mean": 14.1e3}}
    facts["series"][0]["rounds"] = [late, *sent[1:]]
    path.write_text(json.dumps(facts))
    assert from_report(path).values["request_ms"] == pytest.approx(2.1)


def test_of_a_search_the_highest_rate_inside_the_objective_counts(tmp_path: Path) -> None:
    point = {"p99_us": 2_000.0, "inside": True}
    points = [
        point | {"at": 900.0},
        point | {"at": 1_500.0, "p99_us": 4_000.0},
        point | {"at": 3_000.0, "inside": False},
    ]
    path = measured_report(
        tmp_path / "bench.json", search={"objective": "p99 ≤ 5 ms", "highest": 1_500.0, "points": points}
    )
    assert from_report(path).values["pod_rps"] == 1_500
    assert from_report(path).source.startswith("measured: ")
    limited = {"highest": 1_500.0, "points": points, "at_least": "p99 9 ms, but the generator waited for a core"}
    assert from_report(measured_report(path, search=limited)).source.startswith("at least (the load generator was ")
    assert from_report(path, p99_ms=3).values["pod_rps"] == 900


def test_an_invalid_report_is_refused(tmp_path: Path) -> None:
    path = measured_report(tmp_path / "bench.json")
    facts = json.loads(path.read_text())
    for change, sentence in (
        ({"valid": False}, "invalid; measure again"),
        ({"interrupted": True}, "was stopped"),
        ({"format": 99}, "format 99"),
        ({"series": 3}, "is not a report"),
        ({"machine": None}, "is not a report"),
        ({"kind": "ru"}, "nothing that a plan can use"),
    ):
        path.write_text(json.dumps(facts | change))
        with pytest.raises(PlanMisused, match=sentence):
            from_report(path)
    path.write_text("{")
    with pytest.raises(PlanMisused, match="is not a report"):
        from_report(path)


def test_a_comparison_of_stores_gives_what_a_request_costs_the_service(tmp_path: Path) -> None:
    path = measured_report(tmp_path / "stores.json")
    facts = json.loads(path.read_text()) | {"kind": "stores"}
    rounds = [{"service_cpu_us": 40.0}, {"service_cpu_us": 44.0}]
    files = {"name": "file://", "emulated": None, "rounds": [{"service_cpu_us": 30.0}]}
    redis = {"name": "redis://", "emulated": None, "rounds": rounds}
    emulated = {"name": "cosmos", "emulated": "local emulator", "rounds": [{"service_cpu_us": 900.0}]}
    path.write_text(json.dumps(facts | {"stores": [files, redis, emulated]}))
    assert from_report(path).values == {"request_cpu_us": 42.0, "request_ms": pytest.approx(2, rel=0.05)}


def test_prices_are_replaced_by_a_file_and_each_has_a_source(tmp_path: Path) -> None:
    ours = load()
    for price in (ours.ru_hour, ours.cpu_hour, *(size.hour for size in ours.redis)):
        assert price.source
        assert price.date
    assert ours.ru_hours(400 * 2) == pytest.approx(0.064)
    assert ours.ru_hours(400, autoscale=True, regions=2) == pytest.approx(0.032 * 1.5 * 2)
    yours = tmp_path / "yours.toml"
    yours.write_text(OURS.read_text().replace("usd = 0.008", "usd = 0.016"))
    facts = planned(*LEAST, "--prices", yours)
    doubled, before = values(facts), values(planned(*LEAST))
    assert doubled["manual_cost"] == pytest.approx(2 * before["manual_cost"] - before["storage_cost"])
    assert facts["prices_file"] == "yours.toml"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("usd = 0.008", 'usd = "much"', "could not convert"),
        ("usd = 0.008", "usd = -1", "0 or more"),
        ("[ru_hour]", "[ru_day]", "ru_hour is missing"),
        ('basis = "listed"', 'basis = "sure"', "basis of"),
        ('date = "2022-03-31"', 'date = ""', "needs a date and a source"),
        ("gb = 0.5", "gb = 0", "more than 0 GB"),
        ("gets_s = 224_000", "", "gets_s is missing"),
        ("within = 0", "within = 1", "less than 1"),
        ('date = "2022-03-31"', 'date = "2022-02-31"', "day is out of range"),
    ],
)
def test_a_file_of_prices_that_makes_no_sense_is_refused(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(OURS.read_text().replace(old, new))
    with pytest.raises(PricesUnreadable, match=sentence):
        load(path)


def test_the_page_holds_all_that_it_needs_and_loads_nothing(tmp_path: Path) -> None:
    done = plan(*LEAST, "--profile", "evening", "--zipf", "0.9", "--out", tmp_path / "plan")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "plan.html").read_text()
    outline = Outline()
    outline.feed(text)
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert not outline.tags & {"script", "iframe", "object", "embed", "form"}
    assert "default-src 'none'" in text
    assert text.count("<svg") == 4  # each plot for a wide and a narrow page
    facts = json.loads((tmp_path / "plan.json").read_text())
    for figure in facts["figures"]:
        assert f"{figure['name']}<" in text
    for given in facts["inputs"]:
        assert f">{given['name']}<" in text
    assert opened(tmp_path / "plan.html", tmp_path, scheme=0) == []


def test_what_comes_in_is_text_on_the_page(tmp_path: Path) -> None:
    made = review(a_plan(), tmp_path / "<script>alert(1)")
    assert "<script>" not in page(made)
    assert "&lt;script&gt;" in page(made)


GUIDE = (ROOT / "docs" / "sizing.md").read_text()


def indented(paragraph: str) -> str:
    return "\n".join(f"    {line.rstrip()}" for line in paragraph.splitlines())


def test_the_guides_example_is_what_the_command_prints_but_for_groups_that_it_names(tmp_path: Path) -> None:
    shop = GUIDE.partition("`shop.toml`:\n\n")[2].partition("\n\n")[0]
    (tmp_path / "shop.toml").write_text("\n".join(line.strip() for line in shop.splitlines()))
    done = plan("--from", tmp_path / "shop.toml")
    assert done.returncode == 0, done.stderr
    shown = GUIDE.partition("\nprints\n\n")[2].partition("\n\nThe groups behind …")[0]
    left_out = [name for line in re.findall("    … (.*)", shown) for name in line.split(", ")]
    expected = list[str]()
    for paragraph in done.stdout.strip().split("\n\n"):
        name = next((name for name in left_out if paragraph.startswith(name)), "")
        if not name:
            expected.append(indented(paragraph))
        elif expected[-1].startswith("    … "):
            expected[-1] += f", {name}"
        else:
            expected.append(f"    … {name}")
    assert shown == "\n\n".join(expected)


@pytest.mark.parametrize(
    ("begin", "group"),
    [("    hotplate plan --users 6040 ", "Today"), ("    hotplate plan --users 2000000 ", "Autoscaler of a region")],
)
def test_a_group_in_the_guide_is_what_the_command_prints(begin: str, group: str) -> None:
    command, _, after = GUIDE.partition(begin)[2].partition("\n\n")
    done = plan(*begin.split()[2:], *command.replace("\\\n", "").split())
    assert done.returncode == 0, done.stderr
    [printed] = [paragraph for paragraph in done.stdout.split("\n\n") if paragraph.startswith(group)]
    shown = after[after.index(f"    {group}") :].partition("\n\n")[0]
    assert shown == indented(printed)


def test_the_guide_names_every_input_with_its_default() -> None:
    for known in KNOWN.values():
        declared = known.metadata
        default = {MISSING: "required", None: ""}.get(known.default, known.default)
        shown = f"{default:g}" if isinstance(default, float) else default
        row = f"| `{known.name}` | {shown} | {declared['unit']} {declared['description']}".replace("|  ", "| ")
        assert f"{row} |\n" in GUIDE
