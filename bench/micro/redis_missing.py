"""Why there are no figures of Redis where no server is installed."""

from bench.micro.rounds import Outcome, Unmeasured
from bench.process import REDIS_MISSING, redis_installed


def missing(subject: str) -> list[Outcome]:
    """Say why *subject* has no figures; nothing where a server is installed."""
    return [] if redis_installed() else [Unmeasured(subject, REDIS_MISSING)]
