"""Figures of reads during a publish: how long the service's answers take while lists are written to the same Redis."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.lists import Shape
from bench.micro.redis_lists import LIST_LENGTH, fill
from bench.micro.redis_missing import missing
from bench.micro.redis_publisher import publisher
from bench.micro.redis_reads import Reads, drawn, hotplate, path_of, read
from bench.micro.rounds import Effort, Figure, Outcome, interleave, ratio
from bench.process import RedisServer, Server, on_core, redis_serving

RATE = 2_000
ENCODING = "zstd"
"""The one that a publish into Redis takes unless it is told otherwise."""

ALONE, ELSEWHERE, BESIDE = "no publish", "a publish into another redis-server", "a publish into the same redis-server"


@dataclass(frozen=True, slots=True)
class Disturbed:
    """The reads of one round, and how many lists a second were published meanwhile."""

    reads: Reads
    lists_per_s: float


@dataclass(frozen=True, slots=True)
class Stage:
    """What takes part: the service, the Redis that it reads, another one, and how much is asked and published."""

    service: Server
    redis: RedisServer
    other: RedisServer
    paths: Sequence[str]
    users: int
    duration_s: float

    def alone(self) -> Disturbed:
        """Read while nobody publishes."""
        with on_core(1):
            return Disturbed(read(self.service, self.redis, self.paths, RATE, self.duration_s), 0.0)

    def during(self, target: RedisServer) -> Disturbed:
        """Read while one release after the other is published into *target*."""
        with publisher(target.url(), self.users, ENCODING) as publishing:
            publishing.begin()
            reads = self.alone().reads
            return Disturbed(reads, publishing.end())


def measure(effort: Effort) -> list[Outcome]:
    """Publish a fifth of the effort's users, again and again, while the service is asked at a steady rate.

    The publisher shares the two cores with all others; what that costs shows where it writes to another server.
    """
    if skipped := missing("redis_readers"):
        return skipped
    shape = Shape(max(effort.users // 5, 1), LIST_LENGTH)
    shared = shape.drawn()
    with redis_serving() as redis, redis_serving() as other:
        fill(redis.url(), shape, shared, ENCODING)
        with hotplate(redis.url()) as service:
            paths = [path_of(user) for user in drawn(shape.users)]
            stage = Stage(service, redis, other, paths, shape.users, effort.round_s)
            taken = interleave(
                {ALONE: stage.alone, ELSEWHERE: lambda: stage.during(other), BESIDE: lambda: stage.during(redis)},
                effort.rounds,
            )
    return [
        *(figure for name, rounds in taken.items() for figure in figures(name, rounds)),
        ratio(
            f"GET at {RATE:,}/s, p99 during {BESIDE} / during {ALONE}",
            [one.reads.p99_us for one in taken[BESIDE]],
            [one.reads.p99_us for one in taken[ALONE]],
        ),
    ]


def figures(name: str, rounds: Sequence[Disturbed]) -> list[Figure]:
    """Tell of the reads, and of what was published meanwhile."""
    what = f"GET at {RATE:,}/s during {name}"
    published = [Figure(f"{what}: published meanwhile", "lists/s", [one.lists_per_s for one in rounds])]
    popular = [Figure(f"{what}: answers from the popular list", "share", [one.reads.popular for one in rounds])]
    return [
        Figure(f"{what}: p50", "µs", [one.reads.p50_us for one in rounds]),
        Figure(f"{what}: p99", "µs", [one.reads.p99_us for one in rounds]),
        Figure(f"{what}: CPU", "µs/request", [one.reads.cpu_us for one in rounds]),
        *(published if name != ALONE else []),
        *(popular if any(one.reads.popular for one in rounds) else []),
    ]
