"""An HTTP load generator that does not flatter: open loop, each latency counted from when its request was due.

It holds keep-alive connections with one request in flight on each. A due request that finds none free waits, and its
latency runs on; so a server that stalls is charged for all the requests that it kept waiting. It says itself when it
could not keep the pace (`valid`, `doubts`). This is the way in for programs; for people there is `hotplate bench http`.
"""

import uvloop

from bench.loadgen.generator import Generator
from bench.loadgen.result import Result
from bench.loadgen.traffic import Load

__all__ = ["Load", "Result", "drive", "run"]


async def drive(load: Load) -> Result:
    """Run *load* from the event loop at hand, which should have little else to do."""
    return await Generator(load).run()


def run(load: Load) -> Result:
    """Run *load* on an event loop of its own; blocks until it is over."""
    return uvloop.run(drive(load))
