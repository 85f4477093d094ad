"""What a real service said on `/metrics`, replayed to promtool, so that the rules judge what was really said."""

import json
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.command import hotplate
from tests.support.kubernetes import Object, tool
from tests.support.monitoring import groups, rules, selectors
from tests.support.service import Service

# Minutes, a scrape each: more than a day of what was seen before a fault, and hours of what was seen during it.
BEFORE, DURING = 1470, 270
COUNTERS = ("_total", "_count", "_bucket")
UNIX_TIMES = ("_timestamp_seconds", "_start_time_seconds")
RULES = [*rules("alert").values(), *rules("record").values()]
NAMES = {named.name for rule in RULES for named in selectors(rule["expr"])}


@dataclass(frozen=True, slots=True)
class Scrape:
    """One page of metrics, and when it was had, as Unix time."""

    text: str
    at: float = field(default_factory=time.time)

    def values(self, shift_s: float = 0.0) -> dict[str, float]:
        """Return the value of each series that rules go by; *shift_s* is added to those that are Unix times."""
        families = text_string_to_metric_families(self.text)
        samples = [sample for family in families for sample in family.samples if sample.name in NAMES]
        return {
            _series(sample.name, sample.labels): sample.value + shift_s * sample.name.endswith(UNIX_TIMES)
            for sample in samples
        }


def scrape(service: Service, is_meant: Callable[[Scrape], bool]) -> Scrape:
    """Return the first page of metrics that is what is meant; workers report once a second."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = Scrape(service.admin("/metrics").body.decode())
        if is_meant(found):
            return found
        time.sleep(0.05)
    raise AssertionError(found.text)


def write_pipeline(folder: Path) -> Path:
    """Write a pipeline of few and small steps, with its data, `clicks.csv`, and no gate in `gates.toml` yet."""
    rows = [f"u{user},i{(user * 7 + n * n) % 20},1" for user in range(60) for n in range(8)]
    (folder / "clicks.csv").write_text("\n".join(["user,item,weight", *rows]))
    (folder / "gates.toml").write_text("")
    pipeline = folder / "nightly.toml"
    pipeline.write_text(
        '[train]\ndata = "clicks.csv"\nfactors = 4\niterations = 2\n\n'
        f'[publish]\nstore = "file://{folder}/run-store"\ngates = "gates.toml"\n\n'
        f'[run]\nwork = "work"\ntextfile = "{folder}/run.prom"\n'
    )
    return pipeline


def run_pipeline(pipeline: Path, status: int = 0) -> Scrape:
    """Run what `write_pipeline` wrote, which ends with *status*; return the file that it writes for Prometheus."""
    done = hotplate("run", pipeline)
    assert done.returncode == status, done.stderr
    return Scrape((pipeline.parent / "run.prom").read_text())


def assert_fire(folder: Path, alerts: Collection[str], well: Sequence[Scrape], faulty: Sequence[Scrape]) -> None:
    """Have promtool see that *alerts* fire during a fault, and that none of them did before it.

    Before, counters rise as between the two scrapes that were *well*; then as from each scrape to the next, and as
    between the last two for hours. Gauges stay as they were scraped. The fault begins at BEFORE minutes of Unix time.
    """
    before, *during = [scrape.values(BEFORE * 60 - scrape.at) for scrape in (well[-1], *faulty)]
    earlier = well[0].values()
    named = _named_by(alerts)
    needed = [group | {"rules": [rule for rule in group["rules"] if _name(rule) in named]} for group in groups()]
    series = [{"series": _series("up", {}), "values": f"1x{BEFORE + DURING}"}]
    for name in sorted(name for name in before.keys() | set().union(*during) if name.partition("{")[0] in named):
        pages = [earlier.get(name), before.get(name), *(page.get(name) for page in during)]
        replayed = _counted if name.partition("{")[0].endswith(COUNTERS) else _held
        series.append({"series": name, "values": replayed(pages)})
    firing = f'group by (alertname) (last_over_time(ALERTS{{alertstate="firing",alertname=~"{"|".join(alerts)}"}}[%s]))'
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(alerts)]
    judged = [
        {"expr": firing % "1d", "eval_time": f"{BEFORE - 1}m", "exp_samples": []},
        {"expr": firing % "4h", "eval_time": f"{BEFORE + DURING - 10}m", "exp_samples": expected},
    ]
    (folder / "rules.yaml").write_text(json.dumps({"groups": needed}))
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "5m",
        "group_eval_order": [group["name"] for group in needed],
        "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": judged}],
    }
    (folder / "test.yaml").write_text(json.dumps(tests))  # which is YAML, too
    command = [tool("promtool"), "test", "rules", str(folder / "test.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _named_by(alerts: Collection[str]) -> set[str]:
    """Return *alerts* and what they go by, be it by recorded rules; all others would keep promtool at work for long."""
    expressions = {_name(rule): rule["expr"] for rule in RULES}
    named, new = set[str](), set(alerts)
    while new:
        named |= new
        new = {found.name for name in new & expressions.keys() for found in selectors(expressions[name])} - named
    return named


def _name(rule: Object) -> str:
    return str(rule.get("alert") or rule["record"])


def _held(pages: Sequence[float | None]) -> str:
    """Return the values of a gauge in promtool's notation; `_` is a scrape without it."""
    _, before, *during, last = ["_" if value is None else f"{value:f}" for value in pages]
    return " ".join([f"{before}x{BEFORE - 1}", *during, f"{last}x{DURING}"])


def _counted(pages: Sequence[float | None]) -> str:
    """Return the values of a counter in promtool's notation; one that is lower than before has begun anew."""
    counts = [value or 0.0 for value in pages]
    healthy, *rises = [after - before if after >= before else after for before, after in pairwise(counts)]
    counted = healthy * (BEFORE - 1)
    values = ["_" if pages[1] is None else f"0+{healthy:f}", f"x{BEFORE - 1}"]
    for rise in rises:
        counted += rise
        values.append(f" {counted:f}")
    return "".join([*values, f"+{rises[-1]:f}x{DURING}"])


def _series(name: str, labels: dict[str, str]) -> str:
    shown = {"job": "hotplate", "namespace": "shop", "pod": "hotplate-a"} | labels
    return name + "{" + ",".join(f"{label}={json.dumps(value)}" for label, value in shown.items()) + "}"
