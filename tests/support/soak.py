"""How much a soak test does: counts grow with SOAK_MINUTES, and each run draws another seed, which it prints.

The seed is left in the environment, so that the processes of pytest-xdist, which collect for themselves, share it.
"""

import os
import random

import pytest

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
SEED = int(os.environ.setdefault("SOAK_SEED", str(random.SystemRandom().randrange(1, 1 << 31))))

long = pytest.mark.skipif(MINUTES < 20, reason="there is no time for it in ten minutes; SOAK_MINUTES=20 has room")


def scaled(count: int, *, least: int = 1) -> int:
    """Return how many times to do what is done *count* times in a soak of ten minutes."""
    return max(least, round(count * MINUTES / 10))
