"""The commands of README and of docs/quickstart.md, run as they stand there."""

import gzip
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.transcript import free_ports, transcript

ENDS = "trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT"


def write_clicks(path: Path) -> None:
    drawn = random.Random(0)
    rows = ["user_id,item_id,event,timestamp"]
    for number in range(3_000):
        user, event = drawn.randrange(150), drawn.choice(("view", "view", "buy"))
        item = drawn.randrange(user % 3, 60, 3)
        minute = number % 1440
        rows.append(f"u{user},sku-{item},{event},2026-11-{1 + number // 1440:02}T{minute // 60:02}:{minute % 60:02}:00")
    path.write_text("\n".join(rows) + "\n")


def run(folder: Path, script: str) -> str:
    """Run a script that may leave services behind, which end with it; return what it printed."""
    (folder / "script.sh").write_text(f"{ENDS}\n{script}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "script.sh"],
        cwd=folder,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_quick_start_runs_as_it_is_written(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.csv")
    (port,) = free_ports(1)
    page = (ROOT / "docs" / "quickstart.md").read_text()
    printed = run(
        tmp_path, transcript(page).replace("8080", str(port)).replace("8090", str(port + 1000)).replace("8091", "0")
    )
    for answer in ('"user":"u17"', '"source":"personal"', '"source":"popular"'):
        assert answer in printed
    assert (tmp_path / "report.html").stat().st_size > 10_000


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_commands_of_the_readme_run_as_they_are_written(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.csv")
    (tmp_path / "clicks.csv.gz").write_bytes(gzip.compress((tmp_path / "clicks.csv").read_bytes()))
    (port,) = free_ports(1)
    readme = (ROOT / "README.md").read_text()
    train, publish, serve, curl = re.findall(r"^    ((?:hotplate|curl) .*)", readme, re.MULTILINE)
    in_another_terminal = f"--retry 50 --retry-all-errors --retry-delay 1 {curl.removeprefix('curl ')}"
    lines = [
        train,
        publish,
        f"{serve} --port {port} --admin-port {port + 1000} --health-port 0 &",
        f"curl {in_another_terminal}",
    ]
    script = "\n".join(lines).replace("/var/lib/hotplate", f"{tmp_path}/lists").replace("8080", str(port))
    assert '"user":"42"' in run(tmp_path, script)
