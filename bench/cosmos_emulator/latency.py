"""Latencies of data-plane requests: a log-normal distribution that is given by its median and its 99th percentile.

They are an assumption of the caller. Azure documents only the 99th percentile, as a service level of 10 ms:
https://learn.microsoft.com/azure/cosmos-db/consistency-levels#consistency-levels-and-latency
"""

import random
import re
from math import exp, log
from statistics import NormalDist

from hotplate.bench.cosmos_emulator.http import EmulatorMisused

FORM = re.compile(r"p50=(\d+(?:\.\d+)?)(ms|s|us)?,p99=(\d+(?:\.\d+)?)(ms|s|us)?")
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, None: 1e-3}
MAX_S = 60.0


class Latency:
    """Draws delays in seconds; the sequence of one seed is always the same."""

    __slots__ = ("_gauss", "_mu", "_sigma", "p50_s", "p99_s")

    def __init__(self, p50_s: float, p99_s: float, seed: int = 1) -> None:
        if not 0 < p50_s <= p99_s <= MAX_S:
            raise EmulatorMisused(f"--latency needs 0 < p50 <= p99 <= {MAX_S:.0f} s")
        self.p50_s = p50_s
        self.p99_s = p99_s
        self._mu = log(p50_s)
        self._sigma = log(p99_s / p50_s) / NormalDist().inv_cdf(0.99)
        self._gauss = random.Random(seed).gauss  # noqa: S311 -- a repeatable draw, nothing secret

    def delay_s(self) -> float:
        """Draw a delay."""
        return exp(self._gauss(self._mu, self._sigma))


def parse_latency(text: str) -> Latency:
    """Parse `p50=4ms,p99=10ms`."""
    match = FORM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise EmulatorMisused(f"--latency {text!r} is not of the form p50=4ms,p99=10ms")
    return Latency(float(match[1]) * SECONDS[match[2]], float(match[3]) * SECONDS[match[4]])
