"""What GitHub runs: valid by its schemas, of few rights, pinned, and nothing that the Makefile cannot repeat."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kubernetes import tool
from tests.support.paths import ROOT
from tests.support.processes import run_process

pytestmark = pytest.mark.k8s
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def jobs() -> list[Any]:
    """Return the jobs of all workflows."""
    return [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]


@pytest.mark.parametrize(
    ("schema", "paths"), [("github-workflows", WORKFLOWS), ("dependabot", [ROOT / ".github/dependabot.yml"])]
)
def test_each_file_is_valid_by_its_schema(schema: str, paths: list[Path]) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    run_process(*command)


def test_each_job_is_a_verb_of_the_makefile() -> None:
    verbs = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in jobs():
        called = re.findall(
            r"^make ([a-z0-9-]+)", "\n".join(step.get("run", "") for step in job["steps"]), re.MULTILINE
        )
        assert called
        assert set(called) <= verbs


def test_every_action_is_pinned_by_its_commit() -> None:
    for path in WORKFLOWS:
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_workflow_rights_are_named_per_job() -> None:
    for path in WORKFLOWS:
        assert yaml.safe_load(path.read_text())["permissions"] in ({}, {"contents": "read"})
        assert "concurrency" in yaml.safe_load(path.read_text())
    for job in jobs():
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            assert "${{" not in step.get("run", ""), "what somebody else wrote would be run as a command"
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_a_release_waits_for_its_notes_and_then_for_all_checks_of_its_commit() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    check, *others = workflow["jobs"].values()
    commands = [step["run"] for step in check["steps"] if "run" in step]
    assert commands == ['make notes TAG="$TAG"', "make release-check"]
    assert workflow["env"] == {"TAG": "${{ github.ref_name }}"}
    assert {job["needs"] for job in others} == {"check"}


def test_stores_of_earlier_versions_are_tested_with_the_whole_history() -> None:
    """A shallow clone lacks their commits, and the nightly tests skipped them."""
    jobs_of_soak = [
        job for job in jobs() if {"make soak", "make release-check"} & {step.get("run") for step in job["steps"]}
    ]
    assert len(jobs_of_soak) == 2
    for job in jobs_of_soak:
        (checkout,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@"))
        assert checkout["with"]["fetch-depth"] == 0


def test_github_requires_the_same_tools_as_ci_run() -> None:
    required = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["env"]["HOTPLATE_REQUIRE"]
    assert f"export HOTPLATE_REQUIRE={required}\n" in (ROOT / ".ci/run").read_text()
