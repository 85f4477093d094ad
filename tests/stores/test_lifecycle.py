"""Whatever happens in the life of releases, in whichever order, the rules of the design hold."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from stores.lmdb_store import LmdbStore
from stores.store import Store
from tests.support.life import Life
from tests.support.soak import SEED, scaled


class LifeOnDisk(Life):
    """The same, on files."""

    def open(self) -> Store:
        self.folder = Path(tempfile.mkdtemp())
        return LmdbStore(self.folder, self.clock)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


def depth(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.mark.parametrize(("machine", "examples"), [(Life, 30), (LifeOnDisk, 5)])
def test_the_rules_hold_in_some_lives(machine: type[Life], examples: int) -> None:
    run_state_machine_as_test(machine, settings=depth(examples, 30))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("machine", "examples"), [(Life, 2_000), (LifeOnDisk, 200)])
def test_the_rules_hold_in_thousands_of_lives(machine: type[Life], examples: int) -> None:
    run_state_machine_as_test(seed(SEED)(machine), settings=depth(scaled(examples), 40))
