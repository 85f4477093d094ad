"""An HTTP load generator that does not flatter: constant rate, each latency counted from when its request was due.

It holds keep-alive connections with one request in flight on each. A due request that finds none free waits, and its
latency runs on; so a server that stalls is charged for all the requests that it kept waiting. Trust it up to about
80,000 requests/s from one core; it says itself when it could not keep the pace (`valid`, `doubts`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench.generator import Generator
from bench.result import Result
from bench.schedule import Load

__all__ = ["Load", "Result", "drive", "main", "run"]


async def drive(load: Load) -> Result:
    """Run *load* from the event loop at hand, which should have little else to do."""
    return await Generator(load).run()


def run(load: Load) -> Result:
    """Run *load* on an event loop of its own; blocks until it is over."""
    return uvloop.run(drive(load))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the run is valid, 1 when it is not, 2 for a misuse."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        result = run(_load(asked))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(json.dumps(result.to_json()) if asked.json else result.to_text())
    return 0 if result.valid else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.load",
        description="Send GET requests at a constant rate and count latencies from when each was due.",
        epilog="Example: python -m bench.load http://127.0.0.1:8080 --path /v1/popular --rate 2000 --duration 5",
    )
    parser.add_argument("url", help="http://HOST:PORT")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--path", action="append", help="a path to ask for; may be given several times")
    what.add_argument("--paths-file", type=Path, help="a file of paths, one per line")
    pace = parser.add_mutually_exclusive_group(required=True)
    pace.add_argument("--rate", type=float, help="requests/s (open loop)")
    pace.add_argument("--closed", action="store_true", help="closed loop: saturate, for capacity only")
    parser.add_argument("--duration", type=float, default=5.0, help="seconds (5)")
    parser.add_argument("--connections", type=int, default=64, help="keep-alive connections (64)")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="a header to send")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds from when a request was due (5)")
    parser.add_argument("--seed", type=int, help="draw the paths at random instead of in turn")
    parser.add_argument("--observe", action="append", default=[], metavar="FIELD", help="count a JSON field's values")
    parser.add_argument("--spin", action="store_true", help="keep the pace by spinning, on a core of its own")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _load(asked: argparse.Namespace) -> Load:
    return Load(
        url=asked.url,
        paths=asked.path or asked.paths_file.read_text().split(),
        rate=asked.rate,
        duration_s=asked.duration,
        connections=asked.connections,
        headers={name.strip(): value.strip() for name, _, value in (pair.partition(":") for pair in asked.header)},
        spin=asked.spin,
        timeout_s=asked.timeout,
        seed=asked.seed,
        observe=asked.observe,
    )


if __name__ == "__main__":
    sys.exit(main())
