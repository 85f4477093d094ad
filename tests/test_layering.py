"""Allowed imports between rooms, checked by the imports and by `sys.modules`."""

import ast
import re
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import run_process

ROOMS = ("stores", "offline", "serve", "bench", "hotplate")
BASE = "hotplate/base"
MAY_IMPORT = {
    BASE: set[str](),
    "stores": {BASE},
    "offline": {BASE, "stores"},
    "serve": {BASE, "stores"},
    "bench": {BASE, "stores"},
    "hotplate": {BASE, "stores", "offline", "serve", "bench"},
}
# Packages of the offline room, in the order of the work: each may import those before it.
OFFLINE_PACKAGES = ("input", "train", "evaluate", "search", "gates")
FOLDERS = set(ROOMS) - {"hotplate"}
# A module by its bare name, as it may stand in a string, a comment or a page; and how a folder is imported.
NAMED = r"(?<![\w./-])(stores|offline|serve|bench)\.([a-z_]\w*)"
IMPORTED = r"(?m)\bfrom (stores|offline|serve|bench) import |^\s*import (stores|offline|serve|bench)$"
HEAVY = {"numpy", "scipy", "implicit", "polars", "azure", "redis", "matplotlib", "jwt", "opentelemetry"}
# Suffix of the command's modules that may load them.
WORK_OF_A_VERB = "_work"


# Modules of stores whose calls of `asyncio.gather` may go on after the first error, and why that is no harm.
GATHERED = {
    "stores/cosmos/rows.py": "the calls of for_each keep their errors",
    "stores/cosmos/store.py": "reads, which have deadlines of their own",
}


def is_work_of_a_verb(name: str) -> bool:
    return name.startswith("hotplate.cli.") and name.endswith(WORK_OF_A_VERB)


def modules_of(folder: str) -> list[Path]:
    modules = sorted((ROOT / folder).rglob("*.py"))
    assert modules
    return modules


def name_of(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return name if parts[0] == "hotplate" else f"hotplate.{name}"


def room_of(name: str) -> str | None:
    """Return the room of the module that is imported as *name*, None for a module of others."""
    package, _, module = name.partition(".")
    if package != "hotplate":
        return None
    room = module.partition(".")[0]
    if room == "base":
        return BASE
    return room if room in ROOMS else "hotplate"


@cache
def imports_of(module: Path) -> frozenset[str]:
    """Return the modules that one imports: when it is loaded, in its functions, and for types."""
    names = set[str]()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the arrows"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_allowed_rooms(room: str) -> None:
    for module in modules_of(room):
        own = room_of(name_of(module))
        assert own is not None
        strangers = {room_of(name) for name in imports_of(module)} - MAY_IMPORT[own] - {own, None}
        assert not strangers, f"{module.relative_to(ROOT)} imports {strangers}"


def test_offline_packages_import_only_those_before_them() -> None:
    for place, package in enumerate(OFFLINE_PACKAGES):
        later = tuple(f"hotplate.offline.{name}." for name in OFFLINE_PACKAGES[place + 1 :])
        for module in modules_of(f"offline/{package}"):
            backwards = {name for name in imports_of(module) if f"{name}.".startswith(later)}
            assert not backwards, f"{module.relative_to(ROOT)} imports {backwards}"


def test_emulator_imports_no_other_room() -> None:
    stores = ("hotplate.stores.cosmos.charges.", "hotplate.stores.cosmos.url.")
    allowed = ("hotplate.bench.cosmos_emulator.", "hotplate.bench.errors.", *stores)
    for module in modules_of("bench/cosmos_emulator"):
        rooms = {name for name in imports_of(module) if room_of(name)}
        own = {name for name in rooms if f"{name}.".startswith(allowed)}
        assert rooms == own, f"{module.relative_to(ROOT)} imports {rooms - own}"


def test_imports_use_the_hotplate_prefix() -> None:
    folders = [ROOT / name for name in (*ROOMS, "k8s", "tests", "tools", "docs", ".ci", ".github")]
    for file in [*ROOT.glob("*"), *(file for folder in folders for file in folder.rglob("*"))]:
        if file.is_file() and "__pycache__" not in file.parts:
            text = file.read_text(errors="replace")
            bare = {(room, name) for room, name in re.findall(NAMED, text) if find_spec(f"hotplate.{room}.{name}")}
            assert not bare, f"{file.relative_to(ROOT)} names {bare} without hotplate"
            assert not re.search(IMPORTED, text), f"{file.relative_to(ROOT)} imports one"


def test_no_circular_imports() -> None:
    modules = {name_of(module): module for room in ROOMS for module in modules_of(room)}
    graph = {name: imports_of(module) & modules.keys() - {name} for name, module in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_test_imports_another() -> None:
    for module in modules_of("tests"):
        imported = {name for name in imports_of(module) if "test_" in name.rpartition(".")[2][:5]}
        assert not {name for name in imported if name.startswith("tests.")}, module


@pytest.mark.parametrize("room", ["stores", "serve", "hotplate"])
def test_importing_a_light_room_loads_no_heavy_library(room: str) -> None:
    of_extras = (
        "hotplate.stores.redis",
        "hotplate.stores.cosmos",
        "hotplate.serve.lists.item_factors",
        "hotplate.stores.categories",
        "hotplate.serve.telemetry.export",
        "hotplate.serve.telemetry.tracing",
    )
    extras = (
        *of_extras,
        "hotplate.testing",
        "hotplate.__main__",
        "hotplate.client",
        "hotplate.evaluation",
        "hotplate.base.report_plots",
    )
    names = [name_of(module) for module in modules_of(room)]
    names = [name for name in names if not name.startswith(extras) and not is_work_of_a_verb(name)]
    program = f"import sys, {', '.join(names)}; print(*sys.modules)"
    loaded = set(run_process(sys.executable, "-c", program, cwd=ROOT).stdout.split())
    assert not {name.partition(".")[0] for name in loaded} & (HEAVY | FOLDERS)
    others = {"click", "hotplate.cli", *(f"hotplate.{folder}" for folder in FOLDERS)}
    assert room == "hotplate" or not loaded & (others - {f"hotplate.{room}", "hotplate.stores"})


def test_stores_leave_no_call_behind_after_an_error() -> None:
    for module in modules_of("stores"):
        text = module.read_text()
        if "asyncio.gather" not in text:
            continue  # parsing takes most of the time
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.gather":
                returns_errors = "return_exceptions" in {keyword.arg for keyword in node.keywords}
                name = str(module.relative_to(ROOT))
                assert returns_errors or name in GATHERED, (
                    f"{name}:{node.lineno}: use hotplate.stores.concurrency.all_done"
                )


def test_a_verb_loads_the_modules_of_no_other_and_the_version_of_none() -> None:
    program = (
        "import sys; from hotplate.cli.main import command\n"
        "for arguments in (['--version'], ['train', 'plan']):\n"
        "    command(arguments)\n"
        "    print(*(name for name in ('train', 'plan', 'bench') if f'hotplate.cli.{name}' in sys.modules))"
    )
    done = run_process(sys.executable, "-c", program)
    assert done.stdout == "\ntrain\n"
