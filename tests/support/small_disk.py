"""A disk that is soon full, for tests of what happens then."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import run_process


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """Mount a file system of *size* bytes, in memory, until the block ends; without the right to, skip the test."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "hotplate-test", str(place)]
    mounted = run_process(*mount, code=None)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
