"""The autoscaler that is shipped is the one that the planner chose, and the guide shows how."""

import json
import re
import shlex
from typing import Any

import pytest

from tests.support.command import hotplate
from tests.support.kubernetes import built
from tests.support.paths import ROOT

pytestmark = pytest.mark.k8s

GUIDE = (ROOT / "docs" / "sizing.md").read_text()


def autoscaler(folder: str) -> dict[str, Any]:
    (spec,) = [each["spec"] for each in built(folder) if each["kind"] == "HorizontalPodAutoscaler"]
    assert spec.pop("scaleTargetRef")["name"] == "hotplate"
    return dict(spec)


def test_the_shipped_autoscaler_is_what_the_guides_command_chooses() -> None:
    command = re.search(r"^    hotplate (plan (?:.*\\\n)*.* --hpa)$", GUIDE, re.MULTILINE)
    assert command
    done = hotplate(*shlex.split(command[1].replace("\\\n", "")))
    assert done.returncode == 0, done.stderr
    table, _, manifest = done.stdout.partition("\n\n")
    assert [line for line in table.splitlines() if f"    {line.rstrip()}\n" not in GUIDE] == []
    lines = (line.strip().partition(": ") for line in manifest.splitlines()[1:])
    chosen = {name: json.loads(value) for name, _, value in lines}
    assert chosen == autoscaler("base") == autoscaler("overlays/redis") == autoscaler("overlays/cosmos")


def test_no_autoscaler_lets_one_pod_be_alone() -> None:
    assert all(autoscaler(folder)["minReplicas"] >= 2 for folder in ("base", "overlays/dev", "overlays/redis"))
