"""The autoscaler that is shipped has the numbers that the guide's plan gives."""

import json
import re
import shlex
from typing import Any

import pytest
import yaml

from tests.support.command import hotplate
from tests.support.kubernetes import K8S, built
from tests.support.paths import ROOT

pytestmark = pytest.mark.k8s

GUIDE = (ROOT / "docs" / "sizing.md").read_text().partition("## The autoscaler\n")[2]


SHIPPED: dict[str, Any] = yaml.safe_load((K8S / "base" / "autoscaler.yaml").read_text())["spec"]


def autoscaler(folder: str) -> dict[str, Any]:
    (spec,) = [each["spec"] for each in built(folder) if each["kind"] == "HorizontalPodAutoscaler"]
    return dict(spec)


def test_the_shipped_autoscaler_has_the_numbers_of_the_guides_plan() -> None:
    command = re.search(r"^    hotplate (plan (?:.*\\\n)*.*)$", GUIDE, re.MULTILINE)
    assert command
    done = hotplate(*shlex.split(command[1].replace("\\\n", "")), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    planned = {each["name"]: each["value"] for each in facts["inputs"] + facts["figures"]}
    cpu, requests = (metric[metric["type"].lower()]["target"] for metric in SHIPPED["metrics"])
    assert (SHIPPED["minReplicas"], SHIPPED["maxReplicas"]) == (planned["min_pods"], planned["hpa_most_pods"])
    assert cpu["averageUtilization"] == 100 * planned["pod_utilisation"]
    assert float(requests["averageValue"]) == planned["hpa_pod_rps"]


def test_every_overlay_scales_the_service_by_them() -> None:
    assert SHIPPED["scaleTargetRef"]["name"] == "hotplate"
    assert SHIPPED == autoscaler("base") == autoscaler("overlays/redis") == autoscaler("overlays/cosmos")
