"""A model of sample data, trained once for all tests of the command that only read it."""

from pathlib import Path

import pytest

from hotplate.offline.input.sample import sample
from tests.support.command import succeeded


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    sample(users=120, items=60).write_csv(path)
    return path


@pytest.fixture(scope="session")
def model(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    printed = succeeded("train", clicks, "--out", out, "--params", "factors=8,iterations=2")
    assert "popularity" in printed
    return out
