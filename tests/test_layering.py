"""The arrows of the house: who may import whom, held by looking at the imports and at `sys.modules`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ROOMS = {"stores", "offline", "serve", "bench", "verbs", "hotplate"}
MAY_IMPORT = {
    "stores": set[str](),
    "offline": {"stores"},
    "serve": {"stores"},
    "bench": {"stores"},
    "bench/micro": {"stores", "offline", "serve", "bench"},
}
HEAVY = {"numpy", "scipy", "implicit", "polars"}


def imported_rooms(module: Path) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the arrows"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names} & ROOMS


def room_of(module: Path) -> str:
    inside = module.relative_to(ROOT)
    return "bench/micro" if inside.parts[:2] == ("bench", "micro") else inside.parts[0]


@pytest.mark.parametrize("room", sorted({"stores", "offline", "serve", "bench"}))
def test_a_room_imports_only_the_rooms_it_may(room: str) -> None:
    modules = sorted((ROOT / room).rglob("*.py"))
    assert modules
    for module in modules:
        own = room_of(module)
        strangers = imported_rooms(module) - MAY_IMPORT[own] - {room}
        assert not strangers, f"{module.relative_to(ROOT)} imports {strangers}"


@pytest.mark.parametrize("room", ["stores", "serve", "hotplate"])
def test_importing_a_light_room_loads_nothing_heavy(room: str) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.stem != "__init__"
    ] or [room]
    program = f"import sys, {', '.join(modules)}; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout.split()
    )
    assert not loaded & HEAVY
    assert room == "hotplate" or not loaded & (ROOMS - {room, "stores"})
