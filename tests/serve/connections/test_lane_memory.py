"""The fast lane reads nothing beyond its buffers: by guard pages, and under AddressSanitizer and UBSan."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hotplate.serve.connections.fast_lane import MODULE
from tests.support.lane import needs_lane
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.soak import MINUTES, SEED, scaled

SOURCE = ROOT / "serve" / "connections" / "lane.pyx"
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
# Changes of the source that read one byte too many: of a request, and of a row.
PLANTED = {
    "request": ("if span.end - span.start < size or memcmp", "if span.end - span.start < size - 1 or memcmp"),
    "row": ("    items.end = body.end\n", "    items.end = body.end + 1\n"),
}

# Prints the ids of ten answers of a build of the lane.
IDS = """
import asyncio, re, sys
from tests.support.guarded_lane import load
load(sys.argv[1])
from hotplate.serve.lists.reader import TieredReader
from tests.support.lane import Pair, connected
from tests.support.memory_store import MemoryStore
from tests.support.remote import publish

async def main():
    store = MemoryStore()
    await publish(store, "first")
    async with Pair(TieredReader({"store": store})) as pair:
        _, transport = connected(pair.lane)
        for _ in range(10):
            transport.feed(b"GET /v1/popular HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
        print(*(name.decode() for name in re.findall(rb"X-Request-Id: ([0-9a-f]+)", transport.written)))

asyncio.run(main())
"""


def feed(extension: Path, examples: int, minutes: float = 0.0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.guarded_lane", str(extension), str(examples), str(minutes)]
    return run_process(*command, SEED, code=None, cwd=ROOT, env=os.environ | environment)


def feed_sanitized(extension: Path, examples: int, minutes: float = 0.0) -> subprocess.CompletedProcess[str]:
    """Feed a build for a sanitizer, which must be loaded first, and does not see the blocks of Python's allocator."""
    runtime = run_process("cc", "-print-file-name=libasan.so").stdout
    options = {"LD_PRELOAD": runtime.strip(), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    return feed(extension, examples, minutes, **options)


def build(folder: Path, source: Path = SOURCE, flags: tuple[str, ...] = SANITIZED) -> Path:
    """Compile a source by the build hook."""
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import hatch_build as hook; "
        "print(hook.compile_lane(Path(sys.argv[2]), Path(sys.argv[3]), tuple(sys.argv[4:])))"
    )
    command = [sys.executable, "-c", program, str(ROOT), str(folder), str(source), *flags]
    return Path(run_process(*command).stdout.strip())


@needs_lane
def test_lane_reads_nothing_beyond_requests_and_rows() -> None:
    lane = importlib.import_module(MODULE)
    done = feed(Path(str(lane.__file__)), 2_000)
    assert done.returncode == 0, done.stderr[-2000:]
    taken, _, count = done.stdout.split()
    assert int(taken) > int(count) / 4, "most of what was drawn is not the lane's"


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_sanitizers_report_nothing_in_a_long_fuzz(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    done = feed_sanitized(build(tmp_path), scaled(20_000), MINUTES / 3)  # it keeps a core busy
    assert done.returncode == 0, done.stderr[-2000:]
    taken, _, count = done.stdout.split()
    record_property("requests", count)
    record_property("answered by the lane", taken)
    record_property("malformed", count)


@pytest.mark.soak
@pytest.mark.parametrize("place", PLANTED)
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_planted_overread_of_one_byte_is_found(tmp_path: Path, place: str) -> None:
    text = SOURCE.read_text()
    wrong = PLANTED[place]
    assert text.count(wrong[0]) == 1
    source = tmp_path / SOURCE.name
    source.write_text(text.replace(*wrong))
    done = feed_sanitized(build(tmp_path / "built", source), 2_000)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_request_ids_do_not_repeat_after_all_digits_are_used(tmp_path: Path) -> None:
    text = SOURCE.read_text()
    assert text.count("MAX_IDS = 0xFFFFFFFF") == 1
    source = tmp_path / SOURCE.name
    source.write_text(text.replace("MAX_IDS = 0xFFFFFFFF", "MAX_IDS = 3"))
    extension = build(tmp_path / "built", source, ("-O0",))
    command = [sys.executable, "-c", IDS, str(extension)]
    ids = run_process(*command, cwd=ROOT).stdout.split()
    assert len(ids) == len(set(ids)) == 10
    assert [name[12:] for name in ids[:4]] == ["00000001", "00000002", "00000003", "00000001"]
    assert len({name[:12] for name in ids}) == 4
