"""The state machine over the life of releases, on Cosmos DB: its clock is the service's, and nothing takes time."""

from dataclasses import replace

from hypothesis import HealthCheck, settings

from stores.cosmos.charges import load
from stores.store import Store
from tests.support.cosmos_held import Far
from tests.support.life import Life
from tests.support.virtual import VirtualLoop

FREE = replace(load(), read_points=((1.0, 0.0),), write_points=((1.0, 0.0),), missing=0.0)
"""The clock stands still between the rules, so that no budget would ever be filled up again."""


class LifeInCosmos(Life):
    def open(self) -> Store:
        self.loop.close()
        self.loop = VirtualLoop()
        return Far(self.loop, now=self.clock, charges=FREE).store()


TestLifeInCosmos = LifeInCosmos.TestCase
TestLifeInCosmos.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
