"""Charges measured on an account: an emulator that charges otherwise than ours does, which the file must say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hotplate.bench.cosmos_emulator.server import EmulatorSettings
from hotplate.bench.ru.charges import MeasuredCharges, measure, plan
from hotplate.stores.cosmos.charges import load
from tests.support.command import hotplate
from tests.support.cosmos_server import emulator_thread

OURS = load()
THEIRS = """
[read]
points = [[1, 1.25], [2, 1.50]]
strong_factor = 2.0
missing = 1.5
[write]
points = [[1, 6.0], [2, 8.0]]
replace_share = 0.9
term = 0.2
refused_share = 1.2
[query]
base = 2.5
item_share = 0.8
[metadata]
read = 3.0
write = 4.95
[size]
system_properties = true
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("charges") / "theirs.toml"
    path.write_text(THEIRS)
    return path


@pytest.fixture(scope="module")
def url(theirs: Path) -> Iterator[str]:
    with emulator_thread(EmulatorSettings(port=0, charges=theirs)) as (made, _):
        url = f"cosmos+{made.endpoint}db"
        yield url


@pytest.fixture(scope="module")
def measured(url: str) -> MeasuredCharges:
    return measure(plan(url, "1,2"), OURS, lambda _: None)


def test_the_file_says_what_the_account_charges(measured: MeasuredCharges, theirs: Path, tmp_path: Path) -> None:
    path = tmp_path / "charges.toml"
    path.write_text(measured.to_toml())
    found, expected = load(path), load(theirs)
    assert found.read_points[:2] == expected.read_points
    assert found.write_points[:2] == expected.write_points
    for name in ("write_replace_share", "read_missing"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=0.02), name
    assert found.query_base == OURS.query_base
    assert found.size_system_properties is OURS.size_system_properties
    assert found.create(2048, 0) == expected.create(2048, 0)
    assert found.replace(1024, 2048, 0, 0) == pytest.approx(expected.replace(1024, 2048, 0, 0), abs=0.02)


def test_what_was_not_measured_is_ours_and_the_file_says_so(measured: MeasuredCharges) -> None:
    text = measured.to_toml()
    assert "local emulator, not Azure" in text
    assert f"term = {OURS.write_term:g}  # not measured: ours" in text
    assert f"strong_factor = {OURS.read_strong_factor:g}  # not measured: ours" in text
    assert measured.points("read")[2:] == [point for point in OURS.read_points if point[0] > 2]


def test_the_command_prints_the_coefficients_that_it_writes(url: str, tmp_path: Path) -> None:
    file = tmp_path / "charges.toml"
    done = hotplate("bench", "charges", "--store", url, "--sizes", "1", "--yes", "--out", str(file))
    assert done.returncode == 0, done.stderr
    assert "read_missing: 1.5" in done.stdout
    assert load(file).read_missing == 1.5
