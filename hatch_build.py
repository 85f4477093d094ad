"""Build hook: compiles the fast lane, `serve/connections/lane.pyx`, with Cython and the C compiler.

The extension is optional: without Cython or a compiler the build goes on, and the wheel runs on any platform.
HOTPLATE_EXTENSION=require makes a failure or a warning an error; HOTPLATE_EXTENSION=skip does not compile. CC names the
compiler.

    python hatch_build.py                     compile beside the source, as an editable install does
    python hatch_build.py FOLDER [FLAG ...]   compile into FOLDER with other flags, as for a sanitizer
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "serve" / "connections" / "lane.pyx"
MODULE = "hotplate.serve.connections.lane"
FILE_NAME = SOURCE.stem + (sysconfig.get_config_var("EXT_SUFFIX") or ".so")
NOT_COMPILED = "The fast lane is not compiled, and the service is slower without it: "
FLAGS = ("-O2", "-g0", "-DNDEBUG")


class ExtensionNotBuilt(Exception):
    """The extension cannot be compiled here."""


class CustomBuildHook(BuildHookInterface[Any]):
    """Adds the extension to a wheel, and compiles it in the checkout for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See hatchling."""
        mode = _mode()
        if self.target_name != "wheel" or mode == "skip":
            return
        try:
            extension = compile_lane(SOURCE.parent)
        except ExtensionNotBuilt as error:
            if mode == "require":
                raise
            self.app.display_warning(f"{NOT_COMPILED}{error}")
            return
        if version == "standard":
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"][str(extension)] = f"hotplate/serve/connections/{FILE_NAME}"


def _mode() -> str:
    mode = os.environ.get("HOTPLATE_EXTENSION", "")
    if mode not in {"", "require", "skip"}:
        raise ValueError(f"HOTPLATE_EXTENSION is {mode!r}; it may be require or skip")
    return mode


def compile_lane(folder: Path, source: Path = SOURCE, flags: tuple[str, ...] = FLAGS) -> Path:
    """Compile *source* into *folder*, and return the extension; the same inputs give the same bytes.

    Warnings are printed, and errors if the extension is required.
    """
    if find_spec("Cython") is None:
        raise ExtensionNotBuilt("Cython is not installed")
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not compiler[0]:
        raise ExtensionNotBuilt("there is no C compiler; on Debian or Ubuntu: apt-get install gcc python3-dev")
    if shutil.which(compiler[0]) is None:
        raise ExtensionNotBuilt(f"{compiler[0]} cannot be started: there is no such program")
    # A newer compiler than those of CI and the image may warn of more, which must not cost its user the lane.
    strict = ["-Werror"] if _mode() == "require" else []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        shutil.copyfile(source, work / SOURCE.name)
        translate = [sys.executable, "-m", "cython", "-3", *strict, "--module-name", MODULE, SOURCE.name]
        _run(translate, work)
        command = [
            *compiler, "-shared", "-fPIC", "-fwrapv", "-fno-strict-aliasing", "-Wall", "-Wextra", *strict, *flags,
            f'-DHOTPLATE_SOURCE="{source_hash(source)}"', f"-I{sysconfig.get_path('include')}",
            f"{SOURCE.stem}.c", "-o", FILE_NAME,
        ]  # fmt: skip
        _run(command, work)
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{FILE_NAME}"
        shutil.copyfile(work / FILE_NAME, new)
        return new.replace(folder / FILE_NAME)  # never written in place: a running process has it mapped


def _run(command: list[str], folder: Path) -> None:
    """Run a compiler in *folder*, by relative paths, so that none of this machine is in the result."""
    try:
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise ExtensionNotBuilt(f"{command[0]} cannot be started: {error.strerror}") from error
    if ended.returncode:
        raise ExtensionNotBuilt(f"{command[0]} failed: {(ended.stdout + ended.stderr).strip()[-2000:]}")
    print(ended.stderr, end="", file=sys.stderr)  # noqa: T201 -- warnings


def source_hash(source: Path = SOURCE) -> str:
    """Return what the extension names as its `SOURCE`, which shows that it is older than its source."""
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def main(folder: str = "", *flags: str) -> None:
    """Compile the extension; unless it is required, a failure prints why."""
    mode = _mode()
    if mode == "skip":
        return
    try:
        compile_lane(Path(folder) if folder else SOURCE.parent, flags=flags or FLAGS)
    except ExtensionNotBuilt as error:
        if mode == "require":
            raise
        print(f"{NOT_COMPILED}{error}")  # noqa: T201 -- a command


if __name__ == "__main__":
    main(*sys.argv[1:])
