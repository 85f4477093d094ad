"""Alerts, dashboards and the runbook: they parse, they fire, and their metrics exist in a real service."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from hotplate.serve.api.routes import LISTS_TAG, OPERATIONS
from hotplate.serve.metrics import OTHER
from tests.support.command import succeeded
from tests.support.cosmos_account import Account
from tests.support.examples import PAGES, blocks
from tests.support.kubernetes import tool
from tests.support.monitoring import (
    MONITORING,
    RUNBOOK,
    Sample,
    Selector,
    dashboards,
    grouping_labels,
    groups,
    panel_expressions,
    rules,
    runbook,
    selectors,
    table,
)
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.redis_server import RedisServer, certify
from tests.support.service import a_list, published, serving, until

pytestmark = pytest.mark.k8s

# Series of Prometheus itself (`up`, `instance`, `job`), and those that the backup's unit writes.
FOREIGN = {"up", "hotplate_backup_last_success_timestamp_seconds"}
TARGET = {"job": "hotplate", "namespace": "shop", "pod": "hotplate-a"}
TESTS = sorted((ROOT / "tests/k8s/alerts").glob("*.yaml"))
ALERTS = rules("alert")
PARTS = ("Look", "Do")


def promtool(*arguments: str | Path) -> None:
    run_process(tool("promtool"), *arguments)


def expected_in(path: Path) -> list[dict[str, Any]]:
    """Return what a file of tests expects of alerts, one entry an alert and a time."""
    document = yaml.safe_load(path.read_text())
    return [expected for test in document["tests"] for expected in test["alert_rule_test"]]


def test_prometheus_accepts_all_rules_and_panel_expressions(tmp_path: Path) -> None:
    panels = [{"record": f"panel:{n}", "expr": expression} for n, (_, expression) in enumerate(panel_expressions())]
    every = [*groups(), {"name": "panels", "rules": panels}]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": every}))
    promtool("check", "rules", tmp_path / "rules.yaml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups()}))
    (tmp_path / "test.yaml").write_text(path.read_text())
    promtool("test", "rules", tmp_path / "test.yaml")


def test_every_alert_is_tested_firing_and_silent() -> None:
    firing = {expected["alertname"] for path in TESTS for expected in expected_in(path) if expected["exp_alerts"]}
    assert firing == ALERTS.keys()
    healthy = expected_in(ROOT / "tests/k8s/alerts/healthy.yaml")
    assert {expected["alertname"] for expected in healthy} == ALERTS.keys()
    assert not any(expected["exp_alerts"] for expected in healthy)


@pytest.mark.parametrize("name", ALERTS)
def test_alert_has_a_severity_and_its_runbook_section_has_instructions(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOK.relative_to(ROOT)}#{name.lower()}"
    assert re.findall(r"^\*\*(\w+)\.\*\*", runbook()[name], re.MULTILINE) == [*PARTS]


def test_runbook_has_no_section_of_a_removed_alert() -> None:
    assert {heading for heading in runbook() if heading.startswith("Hotplate")} == ALERTS.keys()


def test_documented_queries_are_promql(tmp_path: Path) -> None:
    queries = [block.text for page in PAGES for block in blocks(page) if block.text.startswith("sum(")]
    assert queries
    rules = [{"record": f"documented:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "documented", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def test_documented_objectives_match_the_rules() -> None:
    """A budget that changes in one place only is found."""
    rows = {row[0]: row for row in table((ROOT / "docs" / "monitoring.md").read_text())}
    for objective, series in {"Availability": "unavailable", "Latency": "slow", "Personal lists": "unread"}.items():
        share = float(rows[objective][2].rstrip(" %"))
        budget = f"{round(1 - share / 100, 6):g}"
        for speed in ("Fast", "Slowly"):
            alert = ALERTS[f"Hotplate{objective.split()[0]}Burns{speed}"]["expr"]
            assert set(re.findall(rf"{series}:ratio_rate\w+ > [\d.]+ \* ([\d.]+)", alert)) == {budget}


def test_every_route_of_lists_counts_for_the_objective_of_latency() -> None:
    """Also one that is added, of any number of segments, and no other route."""
    routes = {operation.template: operation.tag == LISTS_TAG for operation in OPERATIONS if operation.method == "GET"}
    routes |= {"/v1/trending": True, "/v1/recent/{user}/carts": True, OTHER: False}
    expressions = [rule["expr"] for rule in rules("record").values()]
    expressions += [expression for _, expression in panel_expressions()]
    selected = [
        selector
        for selector in itertools.chain.from_iterable(map(selectors, expressions))
        if any(label == "route" and operator == "=~" for label, operator, _ in selector.matchers)
    ]
    assert len(selected) > len(routes)
    for selector, route in itertools.product(selected, routes):
        sample = (selector.name, {**TARGET, "route": route, "method": "GET", "code": "200", "le": "0.025"})
        assert selector.selects(sample) == routes[route], (selector, route)


@pytest.mark.parametrize("name", dashboards())
def test_dashboard_panels_do_not_overlap(name: str) -> None:
    dashboard = dashboards()[name]
    assert (dashboard["schemaVersion"], dashboard["uid"]) == (39, f"hotplate-{name}")
    assert [variable["name"] for variable in dashboard["templating"]["list"][:2]] == ["datasource", "namespace"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for position, other in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        beside = position["x"] + position["w"] <= other["x"] or other["x"] + other["w"] <= position["x"]
        below = position["y"] + position["h"] <= other["y"] or other["y"] + other["h"] <= position["y"]
        assert beside or below, (position, other)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert ":" in panel["title"], "a title says what good looks like"
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_mean_charge_counts_charged_responses_only() -> None:
    [expression] = [query for title, query in panel_expressions() if "RU of an answer" in title]
    counted = [selector.name for selector in selectors(expression)]
    assert counted == ["hotplate_store_request_units_total", "hotplate_store_charged_responses_total"]


def test_the_dashboards_are_in_the_config_map() -> None:
    kustomization = yaml.safe_load((MONITORING / "kustomization.yaml").read_text())
    [generated] = kustomization["configMapGenerator"]
    assert set(generated["files"]) == {f"hotplate-{name}.json=dashboards/{name}.json" for name in dashboards()}
    assert generated["options"]["labels"] == {"grafana_dashboard": "1"}


def series(text: str) -> list[Sample]:
    """Return the series of a page of metrics, as Prometheus would have them."""
    families = text_string_to_metric_families(text)
    return [(sample.name, TARGET | sample.labels) for family in families for sample in family.samples]


@pytest.fixture(scope="module")
def scraped(redis_server: RedisServer, cosmos_http: Account, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """The metrics of a service with TLS over all kinds of stores, one of which has failed a read, and of a run."""
    folder = tmp_path_factory.mktemp("monitoring")
    certify(folder)
    urls = [cosmos_http.url("monitoring"), redis_server.url(prefix="monitoring"), f"file://{folder}/store"]
    for url in urls:
        about = {"learnt_until": "2026-11-01T00:00:00+00:00"}
        published(url, {"user:1": a_list("a", "b"), "item:a": a_list("b")}, about=about)
    options = [word for url in urls for word in ("--store", url)]
    options += ["--events", f"{folder}/events", "--hide-consumed", "buy=24", "--probation", "5m"]
    options += ["--cache-mb", "8", "--tls-cert", f"{folder}/server.pem", "--tls-key", f"{folder}/server.key"]
    with serving(folder, *options) as service:
        for path in ("/v1/recommendations/1", "/v1/recommendations/2", "/v1/similar/a", "/v1/popular", "/nothing"):
            service.get(path)
        cosmos_http.inject_faults({"kind": "unavailable"})
        service.get("/v1/recommendations/3")
        cosmos_http.inject_faults()
        until(lambda: b"\nhotplate_release_lookups_total{" in service.admin("/metrics").body)
        until(lambda: b"\nhotplate_withdrawal_blocked{" in service.admin("/metrics").body)
        page = service.admin("/metrics").body.decode()
    return [*series(page), *series(run_pipeline(folder))]


def run_pipeline(folder: Path) -> str:
    """Run a small pipeline; return the file that it writes for Prometheus."""
    rows = [f"u{user},i{(user * 7 + n * n) % 20},1" for user in range(60) for n in range(8)]
    (folder / "clicks.csv").write_text("\n".join(["user,item,weight", *rows]))
    (folder / "nightly.toml").write_text(
        '[train]\ndata = "clicks.csv"\nparams = "factors=4,iterations=2"\n\n'
        f'[publish]\nstore = "file://{folder}/run-store"\n\n'
        f'[run]\nwork = "work"\ntextfile = "{folder}/run.prom"\n'
    )
    succeeded("run", folder / "nightly.toml")
    return (folder / "run.prom").read_text()


def exists(selector: Selector, known: list[Sample]) -> bool:
    """Return whether a series is selected; which statuses have occurred is the service's luck, the label is not."""
    without_code = Selector(selector.name, tuple(matcher for matcher in selector.matchers if matcher[0] != "code"))
    statuses = [matcher for matcher in selector.matchers if matcher[0] == "code"]
    return any(without_code.selects(sample) and (not statuses or "code" in sample[1]) for sample in known)


def test_rules_and_panels_name_existing_metrics(scraped: list[Sample]) -> None:
    recorded = rules("record")
    named = [rule["expr"] for rule in [*recorded.values(), *ALERTS.values()]]
    named += [expression for _, expression in panel_expressions()]
    known = [*scraped, *((name, TARGET) for name in (*recorded, *FOREIGN))]
    labels = {label for _, names in known for label in names}
    for expression in named:
        missing = [selector for selector in selectors(expression) if not exists(selector, known)]
        assert missing == [], expression
        assert grouping_labels(expression) <= labels | {"le"}, expression
