"""How much a soak test does: counts grow with SOAK_MINUTES, and each run draws another seed, which it prints.

The seed is left in the environment, so that the processes of pytest-xdist, which collect for themselves, share it.
"""

import os
import random

import pytest

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
SEED = int(os.environ.setdefault("SOAK_SEED", str(random.SystemRandom().randrange(1, 1 << 31))))

# What was seen to fail on two busy cores without its cause being found; run it with SOAK_MINUTES=20 to look into it.
unexplained = pytest.mark.skipif(MINUTES < 20, reason="fails once in several runs on a busy machine, not yet explained")

long = pytest.mark.skipif(MINUTES < 20, reason="takes minutes; SOAK_MINUTES=20 has room for it")


def scaled(count: int, *, least: int = 1) -> int:
    """Return how many times to do what is done *count* times in a soak of ten minutes."""
    return max(least, round(count * MINUTES / 10))
