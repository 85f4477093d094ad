"""The wheel: it has one top-level name, and works in an application that has packages of the rooms' names."""

import os
import re
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import published, running

# Packages of the application's own by their names, and a module in each; hotplate has each of them, too.
MODULES = {"stores": "encoding", "offline": "model", "serve": "lists", "bench": "process"}
OWN = sorted(f"{room}.{module}" for room, module in MODULES.items())
APPLICATION = f"""
import asyncio, os, sys
import {", ".join(OWN)}
import hotplate
from hotplate.cli.main import command

STORE = f"file://{{os.getcwd()}}/store"

def run(*arguments):
    command(arguments)(arguments, standalone_mode=False)

async def read():
    async with hotplate.open(STORE, timeout_s=60) as lists:
        print(*(item["id"] for item in lists.popular(n=1).items))

run("train", "clicks.csv", "--engine", "popularity", "--no-tune", "--out", "model")
run("publish", "model", "--store", STORE)
run("lookup", "u1", "--store", STORE)
run("plan", "--users", "1000", "--peak-rps", "10")
asyncio.run(read())
print(*({", ".join(f"{name}.OWNER" for name in OWN)}))
print(*sorted(name for name in sys.modules if name.partition(".")[0] in {tuple(MODULES)}))
print(hotplate.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for any platform."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOTPLATE_EXTENSION", "skip")
        return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")))))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_has_all_files_of_the_package(wheel: Path) -> None:
    paths = [path for folder in ("hotplate", *MODULES) for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = [
        path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    assert contents(wheel) == {name if name.startswith("hotplate/") else f"hotplate/{name}" for name in names}


@pytest.mark.soak
def test_application_with_packages_of_equal_names_works(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    application = tmp_path / "application"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    for room, module in MODULES.items():
        (application / room).mkdir(parents=True)
        (application / room / f"{module}.py").write_text("OWNER = 'application'\n")
        (application / room / "__init__.py").touch()
    clicks = [f"u{user},i{user * step % 9}" for user in range(20) for step in range(1, 6)]
    (application / "clicks.csv").write_text("\n".join(["user,item", *clicks]))
    # -S: the checkout is installed here too, by a file that only `site` reads.
    path = [str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    done = run_process(
        sys.executable, "-S", "-c", APPLICATION, cwd=application, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    )
    *_, popular, owners, bare, origin = done.stdout.splitlines()
    assert re.fullmatch(r"i\d", popular)
    assert owners.split() == ["application"] * 4
    assert bare.split() == sorted([*MODULES, *OWN])
    assert origin == f"{installed}/hotplate/__init__.py"


def required(root: Distribution, extras: frozenset[str] = frozenset()) -> dict[str, Distribution]:
    """Return the distributions that one needs, by their names, with those that they need themselves."""
    needed = dict[str, Distribution]()
    for line in root.requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            other = distribution(requirement.name)
            needed |= {requirement.name: other} | required(other, frozenset(requirement.extras))
    return needed


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and its required dependencies, without any extra; return its Python."""
    environment = tmp_path_factory.mktemp("site")
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    (about,) = packages.glob("hotplate-*.dist-info")
    for needed in required(PathDistribution(about)).values():
        for name in {file.parts[0] for file in needed.files or () if file.parts[0] != ".."}:
            (packages / name).symlink_to(Path(str(needed.locate_file(name))))
    return environment / "bin" / "python"


def test_site_needs_few_packages_to_show_lists(site: Path, tmp_path: Path) -> None:
    (packages,) = site.parents[1].glob("lib/python*/site-packages")
    folders = {path.name for path in packages.iterdir() if "-info" not in path.name and path.is_dir()}
    assert folders <= {"hotplate", "httpcore2", "h11", "anyio", "idna", "truststore", "__pycache__"}
    program = """
import asyncio, sys, hotplate
with hotplate.Client(sys.argv[1], timeout_s=60) as client:
    print(client.popular().source)
async def main():
    async with hotplate.AsyncClient(sys.argv[1], timeout_s=60) as client:
        print((await client.recommendations("nobody")).source)
asyncio.run(main())
"""
    published(tmp_path / "store", {})
    with running(tmp_path / "store") as service:
        done = run_process(site, "-I", "-c", program, service.url)
    assert done.stdout.split() == ["popular", "popular"]


def test_missing_service_or_store_extra_names_the_install_command(site: Path) -> None:
    serve = run_process(site, "-I", "-m", "hotplate", "serve", code=2)
    assert re.fullmatch(
        r"the module \w+ is not installed; install it with: pip install 'hotplate\[server\]'\n", serve.stderr
    )
    extras = {"hotplate.open('file:///x')": "server", "hotplate.train": "offline", "hotplate.run": "offline"}
    for program, extra in extras.items():
        done = run_process(site, "-I", "-c", f"import hotplate; {program}", code=None)
        assert f"is not installed; install it with: pip install 'hotplate[{extra}]'" in done.stderr
