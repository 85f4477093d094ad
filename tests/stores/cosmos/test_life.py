"""The state machine over the life of releases, on Cosmos DB: its clock is the service's, and nothing takes time."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings

from stores.cosmos.charges import load
from stores.store import Store
from tests.support.cosmos_held import Far
from tests.support.life import Life
from tests.support.soak import scaled
from tests.support.virtual import VirtualLoop

# The clock stands still between the rules, so that no budget would ever be filled up again.
FREE = replace(load(), read_points=((1.0, 0.0),), write_points=((1.0, 0.0),), missing=0.0)


class LifeInCosmos(Life):
    def open(self) -> Store:
        self.loop.close()
        self.loop = VirtualLoop()
        return Far(self.loop, now=self.clock, charges=FREE).store()


QUICK = settings(max_examples=5, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TestLifeInCosmos = LifeInCosmos.TestCase
TestLifeInCosmos.settings = QUICK


class LongLifeInCosmos(LifeInCosmos):
    """The same, with more examples."""


TestLongLifeInCosmos = pytest.mark.soak(LongLifeInCosmos.TestCase)
TestLongLifeInCosmos.settings = settings(QUICK, max_examples=scaled(60), stateful_step_count=30)
