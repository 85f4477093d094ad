"""Paths of the repository and of the real data beside it, which are never part of it."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
