"""Figures of the Cosmos emulation: CPU of a point read, memory of an item, and what a real run is allowed to spend."""

import sys

from bench.micro import cosmos_client as client
from bench.micro.rounds import Effort, Figure, Outcome, Sample, at_most, figures
from bench.process import Server, free_port, on_core, serving

CPU_US_PER_READ = 50
BYTES_PER_ITEM = 2560
OFF_BY_PERCENT = 5
CONNECTIONS = 16
READ_ITEMS = 1000
STORED_ITEMS = 50_000
PAD_BYTES = 788
"""Makes items of 1,024 B as they are stored, with their system properties."""

PLENTY_RU = 1_000_000
SHORT_OF_RU = (400, 1_000)
ASKING = 8
"""Connections that ask for more than is provisioned."""


def measure(effort: Effort) -> list[Outcome]:
    """Measure the emulator in a process of its own, asked over loopback."""
    return [*_reads(effort), *_memory(effort), *(_limited(effort, ru) for ru in SHORT_OF_RU)]


def _command(port: int) -> list[str]:
    return [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", str(port), "--json"]


def _reads(effort: Effort) -> list[Figure]:
    port = free_port()
    names = [f"user-{n:08d}" for n in range(READ_ITEMS)]
    with serving(_command(port), port, "/__emulation/metrics") as server, on_core(1):
        client.set_up(port, PLENTY_RU)
        client.load(port, client.creates(names, PAD_BYTES), CONNECTIONS, None)
        reads = client.reads(names)
        client.load(port, reads, CONNECTIONS, effort.round_s / 4)
        samples = [_read_once(server, port, reads, effort.round_s) for _ in range(effort.rounds)]
    what = f"cosmos-emulator, point reads of 1 KB as the SDK asks, {CONNECTIONS} connections"
    return figures(what, samples, each="read", cpu_goal=at_most(CPU_US_PER_READ))


def _read_once(server: Server, port: int, reads: list[bytes], seconds: float) -> Sample:
    before = server.cpu_s()
    tally = client.load(port, reads, CONNECTIONS, seconds)
    worked_us = (server.cpu_s() - before) * 1e6
    return Sample(tally.answered / tally.elapsed_s, worked_us / tally.answered)


def _memory(effort: Effort) -> list[Figure]:
    items = min(STORED_ITEMS, max(effort.users, 1000))
    port = free_port()
    with serving(_command(port), port, "/__emulation/metrics") as server, on_core(1):
        client.set_up(port, PLENTY_RU)
        client.load(port, client.creates([f"warm-{n}" for n in range(500)], PAD_BYTES), CONNECTIONS, None)
        before = server.memory_bytes()
        client.load(port, client.creates([f"user-{n:08d}" for n in range(items)], PAD_BYTES), CONNECTIONS, None)
        taken = server.memory_bytes() - before
    name = f"cosmos-emulator, memory of an item of 1 KB, of {items:,}"
    return [Figure(name, "B/item", [taken / items], at_most(BYTES_PER_ITEM))]


def _limited(effort: Effort, ru: int) -> Figure:
    """Ask for more than is provisioned over whole seconds, and tell how far off the admitted RU/s are."""
    port = free_port()
    seconds = max(3, round(effort.round_s * 2))
    names = [f"user-{n:08d}" for n in range(100)]
    with serving(_command(port), port, "/__emulation/metrics"), on_core(1):
        client.set_up(port, ru)
        client.load(port, client.creates(names, PAD_BYTES), ASKING, None)
        reads = client.reads(names)
        off = [_off_percent(port, reads, ru, seconds) for _ in range(effort.rounds)]
    return Figure(f"cosmos-emulator, admitted RU/s beside {ru:,} RU/s: off by", "%", off, at_most(OFF_BY_PERCENT))


def _off_percent(port: int, reads: list[bytes], ru: int, seconds: int) -> float:
    client.until_a_second_begins()
    tally = client.load(port, reads, ASKING, seconds - 0.05)
    return abs(tally.answered / seconds / ru - 1) * 100
