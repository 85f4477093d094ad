"""Figures of publishing into the Cosmos emulation at a rate: the time that it took beside the dry run's, and its RU."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.micro.commands import run
from bench.micro.retail import DATA, HOTPLATE, RECIPE
from bench.micro.rounds import Effort, Figure, Outcome, Unmeasured, at_least, at_most
from bench.process import free_port, serving

MAX_RU = 1_000
OFF_BY = 0.15
MOST_ROUNDS = 2


def measure(effort: Effort) -> list[Outcome]:
    """Publish Online Retail where it is, twice at most: each takes three quarters of a minute."""
    if not DATA.exists():
        return [Unmeasured("cosmos_publishing", f"the data set is not at {DATA}")]
    return [*measure_file(DATA, RECIPE, min(effort.rounds, MOST_ROUNDS))]


def measure_file(data: Path, recipe: Sequence[str], rounds: int, max_ru: int = MAX_RU) -> list[Figure]:
    """Train once, and publish into an emulator in a process of its own, each time into a database of its own."""
    port = free_port()
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", str(port), "--json"]
    with tempfile.TemporaryDirectory() as folder, serving(command, port, "/__emulation/metrics"):
        model = Path(folder) / "model"
        run([*HOTPLATE, "train", str(data), *recipe, "--out", str(model)])
        pairs = [_publish(model, f"cosmos+http://127.0.0.1:{port}/round{number}", max_ru) for number in range(rounds)]
    return figures(pairs, max_ru)


def _publish(model: Path, url: str, max_ru: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the dry run said, and what the publish says of itself."""
    asked = [*HOTPLATE, "publish", str(model), "--store", url, "--max-ru", str(max_ru), "--json"]
    return _told([*asked, "--dry-run"]), _told(asked)


def _told(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own commands
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[-6:])} failed: {done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def figures(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], max_ru: int) -> list[Figure]:
    """Put what was measured beside what was said."""
    what = f"local emulator, not Azure, publish at {max_ru:,} RU/s"
    rows = [said["rows"] for said, _ in pairs]
    took = [done["spent"]["seconds"] for _, done in pairs]
    spent = [done["spent"]["request_units"] for _, done in pairs]
    foretold = [said["seconds"] for said, _ in pairs]
    return [
        Figure(f"{what}: rows", "rows", rows),
        Figure(f"{what}: time by the dry run", "s", foretold),
        Figure(f"{what}: time", "s", took),
        *_within(f"{what}: time / dry run's", [a / b for a, b in zip(took, foretold, strict=True)]),
        Figure(f"{what}: RU by the dry run", "RU/row", [said["request_units"] / said["rows"] for said, _ in pairs]),
        Figure(f"{what}: RU, written and read back", "RU/row", [a / b for a, b in zip(spent, rows, strict=True)]),
        Figure(f"{what}: 429s", "answers", [done["spent"]["throttled"] for _, done in pairs]),
    ]


def _within(name: str, ratios: Sequence[float]) -> list[Figure]:
    """Hold a ratio to both of its bounds."""
    return [
        Figure(name, "ratio", ratios, at_most(1 + OFF_BY)),
        Figure(f"{name}, not less", "ratio", ratios, at_least(1 - OFF_BY)),
    ]
