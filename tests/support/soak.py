"""How much a soak test does: counts grow with SOAK_MINUTES, and each run draws another seed, which it prints.

The seed is left in the environment, because each process of pytest-xdist collects tests and needs the same one.
"""

import os
import random
from typing import Any

import pytest

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
SEED = int(os.environ.setdefault("SOAK_SEED", str(random.SystemRandom().randrange(1, 1 << 31))))

long = pytest.mark.skipif(MINUTES < 20, reason="takes more than a soak of ten minutes; runs with SOAK_MINUTES=20")


def scaled(count: int, *, least: int = 1) -> int:
    """Scale a count of a soak of ten minutes to SOAK_MINUTES."""
    return max(least, round(count * MINUTES / 10))


def in_soak(*values: object) -> Any:  # noqa: ANN401 -- the type is private to pytest
    """Return the parameters of a test that is left to the soak."""
    return pytest.param(*values, marks=pytest.mark.soak)
