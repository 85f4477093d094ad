"""The alerts, dashboards and runbook of this repository, and what PromQL expressions name."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.kubernetes import K8S, Object
from tests.support.paths import ROOT

MONITORING = K8S / "monitoring"
RUNBOOK = ROOT / "docs" / "runbook.md"
# Grafana's values of its variables.
VARIABLES = {"$__rate_interval": "5m", "$namespace": "shop", "$provisioned": "400"}

_STRING = r'"(?:[^"\\]|\\.)*"'
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_SELECTOR = re.compile(rf"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()\s*(?:\{{((?:[^\"{{}}]|{_STRING})*)\}})?")
_MATCHER = re.compile(rf"(\w+)\s*(=~|!~|!=|=)\s*({_STRING})")
_WORDS = {"and", "or", "unless", "offset", "bool"}

Sample = tuple[str, dict[str, str]]
"""One series: its name and labels."""


@dataclass(frozen=True, slots=True)
class Selector:
    """What an expression selects: a name, and what each label has to be."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]

    def selects(self, sample: Sample) -> bool:
        """Return whether a series is selected; one that lacks a label of a matcher is not."""
        name, labels = sample
        return name == self.name and all(
            label in labels and _matches(labels[label], operator, value) for label, operator, value in self.matchers
        )


def _matches(label: str, operator: str, value: str) -> bool:
    equal = label == value if operator in ("=", "!=") else re.fullmatch(value, label) is not None
    return equal != operator.startswith("!")


def groups() -> list[Object]:
    """Return the groups of rules, as Prometheus takes them."""
    rule_groups: list[Object] = yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    return rule_groups


def rules(kind: str) -> dict[str, Object]:
    """Return the rules that are of a kind, `alert` or `record`, by name."""
    return {rule[kind]: rule for group in groups() for rule in group["rules"] if kind in rule}


def dashboards() -> dict[str, Any]:
    """Return the dashboards by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(MONITORING.glob("dashboards/*.json"))}


def panel_expressions() -> Iterator[tuple[str, str]]:
    """Yield where each expression of a panel is, and the expression with its variables filled in."""
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                expression = target["expr"]
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                yield f"{name}: {panel['title']}", expression


def selectors(expression: str) -> list[Selector]:
    """Return what an expression selects, in order."""
    bare = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", "", _GROUPING.sub("", expression))
    return [
        Selector(name, tuple((label, op, json.loads(value)) for label, op, value in _MATCHER.findall(matchers or "")))
        for name, matchers in _SELECTOR.findall(bare)
        if name not in _WORDS
    ]


def grouping_labels(expression: str) -> set[str]:
    """Return the labels that an expression groups or joins by."""
    return {label.strip() for listed in _GROUPING.findall(expression) for label in listed.split(",") if label.strip()}


def runbook() -> dict[str, str]:
    """Return the sections of the runbook by their headings."""
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(section: str) -> Sequence[list[str]]:
    """Return the rows of a section's table, without its head, as the texts of their cells."""
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]
