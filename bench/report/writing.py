"""Writing a file whole or not at all: whoever looks meanwhile sees the old one, or none."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Put *text* at *path*."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
