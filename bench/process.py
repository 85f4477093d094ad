"""The machine of a measurement, and pinned servers on it."""

import importlib.metadata
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from hotplate.bench.errors import BenchFailed
from hotplate.stores.errors import reason_of

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

ROOT = Path(__file__).parents[2]
LIBRARIES = (
    "hotplate", "aiohttp", "httptools", "implicit", "lmdb", "numpy", "orjson", "polars", "redis",
    "uvloop",
)  # fmt: skip
READY_WITHIN_S = 60.0
SERVER_PORTS = (15_000, 32_000)  # below Linux's outgoing ports
ANSWER_TIMEOUT_S = 5.0
EMULATOR_METRICS = "/__emulation/metrics"
STOP_WITHIN_S = 10.0
# Fields of /proc/PID/stat after the name; the last two are CPU times of ended children, in clock ticks.
GROUP = 2
CHILDREN_CPU = slice(13, 15)
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CPU_CLOCK = 2  # CPUCLOCK_SCHED: of all threads
# A store's server shares the generator's core, or has STORE_CORE, which on two cores is the service's.
SERVICE_CORE = 0
GENERATOR_CORE = 1
STORE_CORE = 2
NICENESS = -10  # without real-time priority
STORE_SETTINGS = ("HOTPLATE_REDIS_", "HOTPLATE_COSMOS_")
REDIS_SERVER = "redis-server"
REDIS_MISSING = f"no {REDIS_SERVER} on the PATH; on Debian or Ubuntu: apt-get install {REDIS_SERVER}"


def describe() -> dict[str, Any]:
    """Return date, commit, machine, interpreter and libraries."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def environment() -> dict[str, str]:
    """Return the environment without variables for hotplate or polars."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HOTPLATE_", "_RJEM_"))}


def _cpu_model() -> str:
    """Return the model of the CPU, as Linux names it, else what Python knows of the processor."""
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
    """Return the commit of this checkout, with a + if files are changed; None outside of a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603 -- constant
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and its processes; `admin_url` is set for `hotplate serve`."""

    url: str
    group: int
    admin_url: str = ""

    def cpu_s(self) -> float:
        """Return the CPU time of its processes, also of those that ended, such as a worker that was replaced."""
        total_s = 0.0
        for pid, fields in self._processes():
            total_s += sum(map(int, fields[CHILDREN_CPU])) / TICKS_PER_S
            with suppress(OSError):  # ended
                # The clock of a process, as Linux's clock_getcpuclockid: /proc counts in 10 ms.
                total_s += time.clock_gettime(~pid << 3 | CPU_CLOCK)
        return total_s

    def pids(self) -> Iterator[int]:
        """Yield the ids of its processes."""
        return (pid for pid, _ in self._processes())

    def _processes(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yield the id of each process, and its fields of /proc/PID/stat after the name."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue  # ended
            if int(fields[GROUP]) == self.group:
                yield int(stat.parent.name), fields


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A running redis-server; `process` has no URL."""

    port: int
    process: Server

    def url(self, prefix: str = "bench") -> str:
        """Return the URL of a store in it."""
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}"


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """Pin this process and new children to a core, modulo their number, until the block ends."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[number % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def before_others(*servers: Server) -> Iterator[None]:
    """Raise the priority of *servers* until the block ends."""
    with ExitStack() as stack:
        for pid in [pid for server in servers for pid in server.pids()]:
            stack.enter_context(raised_priority(pid))
        yield


@contextmanager
def raised_priority(pid: int) -> Iterator[None]:
    """Give a process a priority above others until the block ends: the lowest real-time priority, or else a niceness.

    Does nothing if neither is allowed, or if there is only one core, which others need, too.
    """
    policy = os.sched_getscheduler(pid)
    level = os.sched_getparam(pid)
    niceness = os.getpriority(os.PRIO_PROCESS, pid)
    try:
        if len(os.sched_getaffinity(0)) > 1:
            try:
                os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
            except OSError:  # EPERM, or EINVAL in a sandbox
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.sched_setscheduler(pid, policy, level)
            os.setpriority(os.PRIO_PROCESS, pid, niceness)


@contextmanager
def serving(command: Sequence[str], port: int, path: str, *, core: int = SERVICE_CORE) -> Iterator[Server]:
    """Run *command* on a core until the block ends, which begins once *path* is answered with 200.

    Raises BenchFailed with the server's output.
    """
    url = f"http://127.0.0.1:{port}"
    with _running(command, environment(), lambda: _is_answering(url + path), core) as process:
        yield Server(url, process.pid)


@contextmanager
def service_serving(
    store: str, path: str, options: Sequence[str] = (), variables: Mapping[str, str] = os.environ
) -> Iterator[Server]:
    """Run `hotplate serve` without cache, so that every request reads the store, on free loopback ports; see `serving`.

    *store* is a URL, *options* are those of the command. The settings of stores among the environment's *variables* are
    passed on.
    """
    port = free_port()
    admin_port = free_port()
    command = [sys.executable, "-m", "hotplate", "serve", "--cache-mb", "0", "--workers", "1", "--drain-delay", "0"]
    command += ["--port", str(port), "--admin-port", str(admin_port), "--health-port", "0", *options]

    url = f"http://127.0.0.1:{port}"
    env = environment() | {name: value for name, value in variables.items() if name.startswith(STORE_SETTINGS)}
    env["HOTPLATE_STORE"] = store
    with _running(command, env, lambda: _is_answering(url + path), SERVICE_CORE) as process:
        yield Server(url, process.pid, f"http://127.0.0.1:{admin_port}")


@contextmanager
def emulator_serving(*, core: int = GENERATOR_CORE, latency: str | None = None) -> Iterator[Server]:
    """Run the Cosmos DB emulator on a free loopback port and a core until the block ends.

    *latency* is that of its responses, as "p50=4ms,p99=10ms".
    """
    port = free_port()
    command = [sys.executable, "-m", "hotplate", "cosmos-emulator", "--port", str(port), "--json"]
    if latency is not None:
        command += ["--latency", latency]
    with serving(command, port, EMULATOR_METRICS, core=core) as server:
        yield server


@contextmanager
def redis_serving(core: int = GENERATOR_CORE) -> Iterator[RedisServer]:
    """Run a redis-server without persistence on a core; at the end it is killed, as nothing is to be saved."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [REDIS_SERVER, "--dir", folder, "--save", "", "--appendonly", "no"]
        command += ["--bind", "127.0.0.1", "--port", str(port)]
        with _running(command, dict(os.environ), lambda: _redis_answers(port), core) as process:
            yield RedisServer(port, Server("", process.pid))
            process.kill()


def _redis_answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(5) == b"+PONG"
    return False


def fetch(url: str, within_s: float = ANSWER_TIMEOUT_S) -> bytes:
    """GET *url* from a running server, and return the body. Raises BenchFailed for a status from 400 on, too."""
    try:
        with urllib.request.urlopen(url, timeout=within_s) as response:  # noqa: S310 -- http, by the caller
            body: bytes = response.read()
    except (OSError, HTTPException) as error:
        raise BenchFailed(f"{url} does not answer ({reason_of(error)}); did the server end?") from error
    return body


def read_samples(url: str) -> "list[Sample]":
    """Read all metrics of a server. Raises BenchFailed."""
    families = text_string_to_metric_families(fetch(url).decode())
    return [sample for family in families for sample in family.samples]


def store_counts(service: Server) -> Counter[str]:
    """Read the counts of a service since its start: "throttled" reads (429), and failed ones by kind, as "timeout".

    Raises BenchFailed.
    """
    counts = Counter[str]()
    for sample in read_samples(f"{service.admin_url}/metrics"):
        if sample.name == "hotplate_store_throttled_total":
            counts["throttled"] += round(sample.value)
        if sample.name == "hotplate_store_failures_total":
            counts[sample.labels["kind"]] += round(sample.value)
    return counts


def stop_process(process: "subprocess.Popen[Any]", within_s: float = STOP_WITHIN_S) -> None:
    """Wait for a process to end; kill it after *within_s*."""
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _running(
    command: Sequence[str], env: Mapping[str, str], is_ready: Callable[[], bool], core: int
) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a command on a core, wait until *is_ready* returns true, and terminate it after the block.

    Raises BenchFailed with its output if the process ends, or is not ready in READY_WITHIN_S. It leads a group of
    processes, all of which are stopped.
    """
    with tempfile.TemporaryFile() as output:
        with on_core(core):
            process = subprocess.Popen(  # noqa: S603 -- our own commands
                command, cwd=ROOT, env=env, stdout=output, stderr=output, process_group=0
            )

        deadline_s = time.monotonic() + READY_WITHIN_S
        try:
            while not is_ready():
                if process.poll() is not None or time.monotonic() > deadline_s:
                    output.seek(0)
                    raise BenchFailed(_startup_failure(command, process.returncode, output.read()))
                time.sleep(0.02)
            yield process
        finally:
            process.terminate()
            stop_process(process)
            with suppress(ProcessLookupError):  # usually its children have already ended
                os.killpg(process.pid, signal.SIGKILL)


def _startup_failure(command: Sequence[str], code: int | None, output: bytes) -> str:
    """Return why a process did not start, with the end of its output; its exit *code* is None if it still runs."""
    fault = f"did not answer within {READY_WITHIN_S:g} s" if code is None else f"ended at once, with exit code {code}"
    printed = output.decode(errors="replace").strip()[-2000:]
    return f"{' '.join(command)} {fault}; it printed {printed or 'nothing'}"


def free_port() -> int:
    """Claim an unused loopback port for this process and its children."""
    for port in random.SystemRandom().sample(range(*SERVER_PORTS), 100):
        if claim_port(port):
            return port
    raise BenchFailed(f"no port is free among 100 drawn from {SERVER_PORTS[0]} to {SERVER_PORTS[1]}")


def claim_port(port: int) -> bool:
    """Claim a loopback port until this process ends; False if it is used or claimed."""
    # By the UDP port of this number.
    claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        claim.bind(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        claim.close()
        return False
    claim.detach()  # open until the process ends
    return True


def _is_answering(url: str) -> bool:
    """Return whether a GET of *url* is answered within a second."""
    with suppress(BenchFailed):
        fetch(url, within_s=1.0)
        return True
    return False
