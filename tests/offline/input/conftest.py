"""Reading of a text, which most tests of the input begin with."""

from pathlib import Path
from typing import Any

import pytest

from hotplate.offline.input.interactions import Interactions, read_interactions
from tests.support.interactions import ReadText, write


@pytest.fixture
def read_text(tmp_path: Path) -> ReadText:
    """Read a file of this text with the reader's options; it is named `a.csv` by default."""

    def read(text: str, name: str = "a.csv", **options: Any) -> Interactions:  # noqa: ANN401 -- the reader's own
        return read_interactions(write(tmp_path / name, text), **options)

    return read
