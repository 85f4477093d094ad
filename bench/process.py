"""The machine of a measurement, and processes on it: services, redis-server and the emulator, each on a core."""

import importlib.metadata
import os
import platform
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

from hotplate.bench.errors import BenchFailed
from hotplate.stores.urls import scheme_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from prometheus_client.samples import Sample

# Over which a process and a worker of its send each other messages.
Channel: TypeAlias = "Connection[Any, Any]"

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "hotplate", "aiohttp", "hdrhistogram", "httptools", "implicit", "lmdb", "numpy", "orjson", "polars", "redis",
    "uvloop",
)  # fmt: skip
READY_WITHIN_S = 30.0
# Linux gives ports from 32,768 on to outgoing connections.
SERVER_PORTS = (15_000, 32_000)
# When a server that does not report what it uses is given up.
METRICS_TIMEOUT_S = 5.0
EMULATOR_METRICS = "/__emulation/metrics"
EMULATED_SCHEMES = {"cosmos+http", "cosmos+https"}
STOP_WITHIN_S = 10.0
# A field of /proc/PID/stat, counted from the one after the name.
GROUP = 2
# CPUCLOCK_SCHED: the kind of a process's CPU clock that counts all of its threads, user and system.
CPU_CLOCK = 2
# The service has the first core and the load generator the second. A store's server runs with the generator, unless it
# is to leave that a core of its own: then on the third, or with the service if there are two.
SERVICE_CORE = 0
GENERATOR_CORE = 1
STORE_CORE = 2
# What is taken if real-time priority is not allowed.
NICENESS = -10
REDIS_SERVER = "redis-server"
REDIS_MISSING = f"no {REDIS_SERVER} on the PATH; on Debian or Ubuntu: apt-get install {REDIS_SERVER}"


def describe() -> dict[str, Any]:
    """Describe the machine, the interpreter, the libraries, the commit and the date, as plain values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def environment() -> dict[str, str]:
    """Copy the environment without what hotplate and polars set in it, so what is measured is what is shipped."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HOTPLATE_", "_RJEM_"))}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Name the commit, with a + when the tree differs from it; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None  # installed: whatever repository the environment lies in is not ours
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 -- constant
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `group` is the process group of it and of whatever it started."""

    url: str
    group: int
    admin_url: str = ""
    """Of the service, if it has its metrics."""

    def cpu_s(self) -> float:
        """Add up the CPU time, user and system, of all its processes; to the nanosecond, where /proc counts 10 ms."""
        return sum(_process_cpu_s(pid) for pid in self.pids())

    def pids(self) -> Iterator[int]:
        """Yield its processes."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # a process that has just ended
            if int(fields[GROUP]) == self.group:
                yield int(stat.parent.name)


def _process_cpu_s(pid: int) -> float:
    """Read the CPU clock of a process, whose number Linux makes of its id (`clock_getcpuclockid`); 0 when ended."""
    try:
        return time.clock_gettime(~pid << 3 | CPU_CLOCK)
    except OSError:
        return 0.0


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running server, empty at first; `process` has no URL of HTTP."""

    port: int
    process: Server

    def url(self, prefix: str = "bench") -> str:
        """Name a deployment in it."""
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}"


@contextmanager
def on_core(number: int) -> Iterator[int | None]:
    """Keep this process, and what it starts until then, on its *number*-th core, which is yielded; None if it has one.

    Counting goes round: of two cores the third is the first.
    """
    allowed = os.sched_getaffinity(0)
    core = sorted(allowed)[number % len(allowed)]
    os.sched_setaffinity(0, {core})
    try:
        yield core if len(allowed) > 1 else None
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def before_others(*servers: Server) -> Iterator[None]:
    """Let servers run before whatever else the machine does, as `raised_priority` does with each of their processes."""
    with ExitStack() as stack:
        for pid in [pid for server in servers for pid in server.pids()]:
            stack.enter_context(raised_priority([pid]))
        yield


@contextmanager
def raised_priority(pids: Sequence[int]) -> Iterator[None]:
    """Let the main threads of processes run before all others until the block ends.

    That is real-time priority of the lowest level, by turns, or else a niceness; nothing where the system allows
    neither, or if no core is left for the others.
    """
    before = {
        pid: (os.sched_getscheduler(pid), os.sched_getparam(pid), os.getpriority(os.PRIO_PROCESS, pid)) for pid in pids
    }
    try:
        if len(pids) < len(os.sched_getaffinity(0)):
            _raise(pids)
        yield
    finally:
        for pid, (policy, level, niceness) in before.items():
            with suppress(ProcessLookupError):  # it may have died
                os.sched_setscheduler(pid, policy, level)
                os.setpriority(os.PRIO_PROCESS, pid, niceness)


def _raise(pids: Sequence[int]) -> None:
    try:
        for pid in pids:
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    except OSError:  # not only EPERM: a sandbox without real-time priority says EINVAL
        with suppress(OSError):
            for pid in pids:
                os.setpriority(os.PRIO_PROCESS, pid, NICENESS)


@contextmanager
def serving(
    command: Sequence[str], port: int, path: str, *, core: int = SERVICE_CORE, scheme: str = "http"
) -> Iterator[Server]:
    """Run *command* on a core until the block ends; the block begins once *path* is answered with 200.

    Raises BenchFailed, with what the server printed, if that fails.
    """
    url = f"{scheme}://127.0.0.1:{port}"
    with _running(command, environment(), lambda: _answers(url + path), core) as process:
        yield Server(url, process.pid)


@contextmanager
def service_serving(command: Sequence[str], path: str, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run *command*, a `hotplate serve`, with *settings* on free ports of loopback, as `serving` does."""
    port, admin_port = free_port(), free_port()
    options = ["--port", str(port), "--admin-port", str(admin_port), "--health-port", "0"]
    options += ["--workers", "1", "--drain-delay", "0"]
    url, env = f"http://127.0.0.1:{port}", environment() | dict(settings or {})
    with _running([*command, *options], env, lambda: _answers(url + path), SERVICE_CORE) as process:
        yield Server(url, process.pid, f"http://127.0.0.1:{admin_port}")


@contextmanager
def emulator_serving(*options: str, core: int = GENERATOR_CORE, latency: str | None = None) -> Iterator[Server]:
    """Run the emulator of Cosmos DB on loopback until the block ends; *options* are those of its verb.

    *latency* delays its data plane, as in `p50=4ms,p99=10ms`.
    """
    port, delay = free_port(), () if latency is None else ("--latency", latency)
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", str(port), "--json", *options, *delay]
    scheme = "https" if "--tls" in options else "http"
    with serving(command, port, EMULATOR_METRICS, core=core, scheme=scheme) as server:
        yield server


@contextmanager
def redis_serving(core: int = GENERATOR_CORE) -> Iterator[RedisServer]:
    """Run a redis-server that writes nothing to disk, on a core, until the block ends."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [REDIS_SERVER, "--dir", folder, "--save", "", "--appendonly", "no"]
        command += ["--bind", "127.0.0.1", "--port", str(port)]
        with _running(command, dict(os.environ), lambda: _redis_answers(port), core) as process:
            yield RedisServer(port, Server("", process.pid))
            process.kill()  # it has nothing to lose


def _redis_answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(5) == b"+PONG"
    return False


def read_samples(url: str) -> "list[Sample]":
    """Read all metrics of a server of ours. Raises OSError."""
    with urllib.request.urlopen(url, timeout=METRICS_TIMEOUT_S) as page:  # noqa: S310 -- http, by the caller
        text = page.read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


class StoreCounts(NamedTuple):
    """What the metrics of a service say of its store until now."""

    ru: float
    charged: int
    """Responses that request units were charged for."""

    throttled: int

    def since(self, before: "StoreCounts") -> "StoreCounts":
        """Return what was counted since then."""
        counted = self.charged - before.charged, self.throttled - before.throttled
        return StoreCounts(self.ru - before.ru, *counted)


def store_counts(service: Server) -> StoreCounts:
    """Read the metrics of a service; zeros of a store that charges nothing. Raises OSError."""
    sums = dict[str, float]()
    for sample in read_samples(f"{service.admin_url}/metrics"):
        sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    names = "request_units", "charged_responses", "throttled"
    ru, charged, throttled = (sums.get(f"hotplate_store_{name}_total", 0.0) for name in names)
    return StoreCounts(ru, int(charged), int(throttled))


def is_emulated(url: str) -> bool:
    """Return whether the URL of a store names an emulator of Cosmos DB."""
    return scheme_of(url) in EMULATED_SCHEMES


def redis_installed() -> bool:
    """Return whether this machine has a redis-server to start."""
    return shutil.which(REDIS_SERVER) is not None


def start_worker(target: str) -> "tuple[subprocess.Popen[bytes], Channel]":
    """Start a process that calls *target*, written `module:function`, with the other end of the returned channel."""
    ours, theirs = Pipe()
    module, _, function = target.partition(":")  # not with -m, by which its messages would be classes of another module
    program = f"import sys, {module} as module; from multiprocessing.connection import Connection as Channel; "
    command = [sys.executable, "-P", "-c", f"{program}module.{function}(Channel(int(sys.argv[1])))"]
    number = theirs.fileno()
    process = subprocess.Popen([*command, str(number)], pass_fds=[number], stdin=subprocess.DEVNULL)  # noqa: S603 -- our own modules
    theirs.close()
    return process, ours


def receive(channel: Channel, died: str) -> object:
    """Receive a worker's message; raises one that is an exception, and BenchFailed, which says *died*, for none."""
    try:
        message: object = channel.recv()
    except (EOFError, ConnectionError) as error:
        raise BenchFailed(died) from error
    if isinstance(message, Exception):
        raise message
    return message


def stop_process(process: "subprocess.Popen[Any]", within_s: float = STOP_WITHIN_S, *, group: bool = False) -> None:
    """Wait for a process that is about to end, and kill it, or its whole group, if it does not."""
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


@contextmanager
def _running(
    command: Sequence[str], env: Mapping[str, str], is_ready: Callable[[], bool], core: int
) -> "Iterator[subprocess.Popen[bytes]]":
    with tempfile.TemporaryFile() as output:
        with on_core(core):
            process = subprocess.Popen(  # noqa: S603 -- our own commands
                command, cwd=ROOT, env=env, stdout=output, stderr=output, process_group=0
            )
        until = time.monotonic() + READY_WITHIN_S
        try:
            while not is_ready():
                if process.poll() is not None or time.monotonic() > until:
                    output.seek(0)
                    raise BenchFailed(f"{' '.join(command)} does not start: {output.read().decode()[-2000:]}")
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()
            stop_process(process, group=True)


def free_port() -> int:
    """Claim a port on loopback that is not in use, below those that the kernel gives to outgoing connections.

    A server can be started on it at any time while this process lives, and started again.
    """
    for port in random.SystemRandom().sample(range(*SERVER_PORTS), 100):
        if claim_port(port):
            return port
    raise BenchFailed(f"no port is free among 100 drawn from {SERVER_PORTS[0]} to {SERVER_PORTS[1]}")


def claim_port(port: int) -> bool:
    """Claim a port on loopback until this process ends; False if it is in use or another process has claimed it."""
    # The claim is the UDP port of the same number: it keeps no server from the TCP port, and ends with the process.
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        claim.close()
        return False
    claim.detach()  # open until the process ends
    return True


def _answers(url: str) -> bool:
    unverified = ssl._create_unverified_context()  # noqa: S323, SLF001 -- it asks whether a server of ours is up
    try:
        with urllib.request.urlopen(url, timeout=1.0, context=unverified) as response:  # noqa: S310 -- on loopback
            return bool(response.status == 200)
    except OSError:  # refused for now, or an error status for now
        return False
