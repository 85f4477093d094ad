"""The commands of docs/quickstart.md, run as they stand there."""

import os
import random
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


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_quick_start_runs_as_it_is_written(tmp_path: Path) -> None:
    write_clicks(tmp_path / "clicks.csv")
    (port,) = free_ports(1)
    page = (ROOT / "docs" / "quickstart.md").read_text()
    script = transcript(page).replace("8080", str(port)).replace("8090", str(port + 1000))
    (tmp_path / "quickstart.sh").write_text(f"{ENDS}\n{script}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "quickstart.sh"],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for answer in ('"user":"u17"', '"source":"personal"', '"source":"popular"'):
        assert answer in done.stdout
    assert (tmp_path / "report.html").stat().st_size > 10_000
