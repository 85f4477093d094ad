"""How much a soak test does: counts grow with SOAK_MINUTES, and each run draws another seed, which it prints."""

import os
import random

MINUTES = float(os.environ.get("SOAK_MINUTES", "10"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)


def scaled(count: int, *, least: int = 1) -> int:
    """Return how many times to do what is done *count* times in a soak of ten minutes."""
    return max(least, round(count * MINUTES / 10))
