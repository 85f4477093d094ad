"""The fast lane as an extension: it is compiled if possible, and everything works without it."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hotplate.serve.connections.fast_lane import LANE_MISSING, MODULE, is_compiled
from tests.support.lane import needs_lane
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import running

HOOK = ROOT / "hatch_build.py"
SOURCE = ROOT / "serve" / "connections" / "lane.pyx"
PACKAGE = "hotplate/serve/connections"
# Tests of what answers requests.
ROUTES = ("api", "access", "connections", "telemetry", "lists", "tiers", "test_named_lists.py")
# As if the extension were not installed, in a process and in those that it forks.
WITHOUT = "import sys; sys.modules['hotplate.serve.connections.lane'] = None"
needs_a_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


def hook(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_process(
        sys.executable, HOOK, *arguments, code=None, env=os.environ | {"HOTPLATE_EXTENSION": ""} | environment
    )


@pytest.mark.skipif(os.environ.get("HOTPLATE_EXTENSION") != "require", reason="the fast lane is not required")
def test_required_lane_is_compiled() -> None:
    assert is_compiled()


@needs_lane
def test_compiled_lane_is_of_the_present_source() -> None:
    lane = importlib.import_module(MODULE)
    program = "import sys; sys.path.insert(0, sys.argv[1]); import hatch_build; print(hatch_build.source_hash())"
    printed = run_process(sys.executable, "-c", program, ROOT).stdout
    assert printed.strip() == lane.SOURCE, "compile it again: .venv/bin/python hatch_build.py"


def test_build_without_a_compiler_succeeds_unless_required(tmp_path: Path) -> None:
    done = hook(tmp_path / "optional", CC="no-such-compiler")
    assert done.returncode == 0
    assert "The fast lane is not compiled" in done.stdout
    assert "no-such-compiler cannot be started" in done.stdout
    required = hook(tmp_path / "required", CC="no-such-compiler", HOTPLATE_EXTENSION="require")
    assert required.returncode == 1
    assert "ExtensionNotBuilt" in required.stderr
    assert hook(tmp_path / "skipped", HOTPLATE_EXTENSION="skip").returncode == 0
    assert not list(tmp_path.iterdir())


def test_unknown_extension_mode_is_an_error(tmp_path: Path) -> None:
    done = hook(tmp_path, HOTPLATE_EXTENSION="maybe")
    assert done.returncode == 1
    assert "HOTPLATE_EXTENSION is 'maybe'; it may be require or skip" in done.stderr


@needs_a_compiler
@pytest.mark.soak
def test_builds_are_reproducible_and_platform_wheel_has_the_lane(tmp_path: Path) -> None:
    for name in ("first", "second"):
        assert hook(tmp_path / name, HOTPLATE_EXTENSION="require").returncode == 0
    (first,), (second,) = ((tmp_path / name).iterdir() for name in ("first", "second"))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    program = "import sys; from hatchling.builders.wheel import WheelBuilder\n"
    program += "print(next(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2])))"
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(".*", "*.so", "__pycache__"))
    command = [sys.executable, "-c", program, str(checkout), str(tmp_path / "wheel")]
    built = run_process(*command, env=os.environ | {"HOTPLATE_EXTENSION": "require"})
    wheel = Path(built.stdout.split()[-1])
    assert f"cp{sys.version_info.major}{sys.version_info.minor}" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == [f"{PACKAGE}/{first.name}"]
        assert archive.read(f"{PACKAGE}/{first.name}") == first.read_bytes()


WARNED = '\ncdef extern from *:\n    """\n    static int planted(void) { int unused; return 0; }\n    """\n'
COMPILE = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import hatch_build as hook; "
COMPILE += "hook.compile_lane(Path(sys.argv[2]), Path(sys.argv[3]), ('-O0',))"


@needs_a_compiler
@pytest.mark.soak
@pytest.mark.parametrize("mode", ["", "require"])
def test_compiler_warnings_are_shown_and_fail_a_required_build(tmp_path: Path, mode: str) -> None:
    source = tmp_path / SOURCE.name
    for text, is_warned in ((SOURCE.read_text(), False), (SOURCE.read_text() + WARNED, True)):
        source.write_text(text)
        command = [sys.executable, "-c", COMPILE, str(ROOT), str(tmp_path / "built"), str(source)]
        environment = os.environ | {"HOTPLATE_EXTENSION": mode}
        done = run_process(*command, code=None, env=environment)
        assert ("unused variable" in done.stderr) == is_warned
        assert (done.returncode != 0) == (is_warned and mode == "require")


def test_service_without_the_extension_reports_it_and_answers(folder: Path) -> None:
    with running(folder, before=WITHOUT) as service:
        assert service.get("/v1/recommendations/42").json["source"] == "personal"
        assert service.get("/v1/recommendations/nobody").json["source"] == "popular"
        assert service.admin("/console/state").json["fast_lane"] == "missing"
        assert service.log.read_text().count(LANE_MISSING) == 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_routes_pass_without_the_extension(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(".*", "*.so", "__pycache__"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(checkout), "HOTPLATE_EXTENSION": "skip"}
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal", "-m", "not soak"]
    tests = [f"tests/serve/{name}" for name in ROUTES]
    done = run_process(*command, *tests, cwd=checkout, env=environment)
    assert "the fast lane is not compiled" in done.stdout
    for count, outcome in re.findall(r"(\d+) (passed|skipped)", done.stdout.splitlines()[-1]):
        record_property(outcome, count)


def test_console_names_the_lane_that_a_switch_turns_off(folder: Path) -> None:
    with running(folder, "--no-fast-lane") as service:
        assert service.admin("/console/state").json["fast_lane"] == "off"
        assert "the fast lane is not compiled" not in service.log.read_text()


def test_version_in_json_says_whether_the_lane_is_compiled() -> None:
    command = [sys.executable, "-m", "hotplate", "--version", "--json"]
    shown = json.loads(run_process(*command, cwd=ROOT).stdout)
    assert shown["fast_lane"] in {"compiled", "missing"}
    program = f"{WITHOUT}; import runpy; runpy.run_module('hotplate', run_name='__main__')"
    without = [sys.executable, "-c", program, "--version", "--json"]
    assert json.loads(run_process(*without, cwd=ROOT).stdout) == {
        "version": shown["version"],
        "fast_lane": "missing",
    }
