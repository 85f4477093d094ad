"""Where things are: the repository, and the real data beside it, which is never part of it."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
