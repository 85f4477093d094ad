"""Pods of built manifests, as a kubelet runs them: command, environment, user, mounts, probes and end as the YAML says.

No container engine is at hand. A pod has namespaces of its own (mounts, network, processes); its root is in memory,
read-only where the spec says so, with this machine's system and, at /opt/hotplate, the environment of the tests.
"""

import ctypes
import http.client
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from k8s.image.dockerfile import parse
from tests.support.kubernetes import K8S, Object
from tests.support.paths import ROOT

CLONE_NEWNET = 0x40000000
WAIT_S = 30.0
# What a root has of this machine, and what a network of one's own takes to be brought up.
SHARED = ("/usr", "/etc/ssl", str(ROOT), sys.base_prefix, *(path for path in sys.path if Path(path).is_dir()))
COPIED = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "localtime")
TOOLS = ("unshare", "nsenter", "setpriv", "chroot", "ip")


def require_namespaces() -> None:
    """Skip by name what this machine does not allow; fail where HOTPLATE_REQUIRE says that it must."""
    missing = [name for name in TOOLS if shutil.which(name) is None]
    reason = f"{', '.join(missing)} is not here" if missing else ""
    if not reason and os.geteuid() != 0:
        reason = "a pod's user, mounts and network take root"
    namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    if not reason and subprocess.run(namespaces, capture_output=True, check=False).returncode:
        reason = "this machine does not allow namespaces (unshare)"
    if reason and "pods" in os.environ.get("HOTPLATE_REQUIRE", "").split(","):
        pytest.fail(f"HOTPLATE_REQUIRE says pods: {reason}")
    if reason:
        pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Image:
    """What a container of an image starts with, as k8s/Dockerfile says."""

    environment: dict[str, str]
    entrypoint: list[str]
    words: list[str]
    directory: str


def image(target: str) -> Image:
    """Read a target of k8s/Dockerfile, and the stages that it is made of."""
    stages = parse((K8S / "Dockerfile").read_text())
    chain = [stages[target]]
    while chain[0].base in stages:
        chain.insert(0, stages[chain[0].base])
    made = Image({"PATH": os.defpath}, [], [], "")
    for instruction in (each for stage in chain for each in stage.instructions):
        match instruction.name:
            case "ENV":
                made.environment.update(instruction.pairs(made.environment))
            case "ENTRYPOINT":
                made.entrypoint[:] = instruction.command()
            case "CMD":
                made.words[:] = instruction.command()
            case "WORKDIR":
                made = Image(made.environment, made.entrypoint, made.words, instruction.value)
    return made


IMAGES = {"hotplate": "serve", "hotplate-offline": "offline", "hotplate-spark": "spark"}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What pods find: the objects that were applied, what secrets and claims hold, and servers by name and port."""

    objects: Sequence[Object]
    folder: Path
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    servers: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """The port of this machine behind each."""

    def named(self, kind: str, name: str) -> Object:
        """Return one object."""
        (found,) = [one for one in self.objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
        return found


class Pod:
    """A pod of one container, and its kubelet; lives until its end is asked for, or its block ends."""

    def __init__(self, cluster: Cluster, spec: Object, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Take the pod's `spec`, and of the *environment* what differs from it, as only a cluster has it."""
        self.cluster, self.spec = cluster, spec
        (self.container,) = spec["containers"]
        self.is_ready = self.is_terminating = False
        self.failed_probes = list[str]()
        self._image = image(IMAGES[self.container["image"].partition(":")[0]])
        self._changed = dict(environment or {})
        self._folder = cluster.folder / name
        self._folder.mkdir()
        self._over = threading.Event()
        self._inside = ThreadPoolExecutor(1)
        self._relays = list[_Relay]()
        self._kubelet = threading.Thread(target=self._probe)
        self._process = self._start()

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text()

    @property
    def pid(self) -> int:
        """The process 1 of the pod, by its number outside."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def port(self, name: str) -> int:
        """Return a port of the container by its name."""
        (found,) = [int(port["containerPort"]) for port in self.container["ports"] if port["name"] == name]
        return found

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the pod, as from its own network."""
        return self._inside.submit(socket.create_connection, ("127.0.0.1", port), timeout_s).result()

    def execute(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--root"]
        return subprocess.run([*enter, *self._as_user(words)], capture_output=True, text=True, check=False)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; return its exit code."""
        return self._process.wait(timeout_s)

    def delete(self) -> tuple[int, float]:
        """End it as Kubernetes does: preStop, then SIGTERM; return its exit code, and the seconds since the beginning.

        Raises subprocess.TimeoutExpired where it is not over in `terminationGracePeriodSeconds`.
        """
        began = time.monotonic()
        self.is_terminating = True
        handler = self.container["lifecycle"]["preStop"]
        assert handler.keys() == {"exec"}
        stopped = self.execute(handler["exec"]["command"])
        assert stopped.returncode == 0, stopped.stderr
        self._over.set()
        os.kill(self.pid, signal.SIGTERM)
        left_s = self.spec["terminationGracePeriodSeconds"] - (time.monotonic() - began)
        return self.wait(left_s), time.monotonic() - began

    def close(self) -> None:
        """Let nothing of it live on."""
        self._over.set()
        if self._process.poll() is None:
            # Process 1 of its namespace, and so all of it.
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait(WAIT_S)
        if self._kubelet.is_alive():
            self._kubelet.join()
        for relay in self._relays:
            relay.close()
        self._inside.shutdown()

    def watch(self) -> None:
        """Begin to probe it."""
        self._kubelet.start()

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the container; its process waits until its network is there."""
        words = ["unshare", "--mount", "--net", "--pid", "--fork", "sh", "-ec", self._script()]
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != b"up\n":
            process.wait()
            raise AssertionError(self.log)
        self._inside.submit(_join_network, process.pid).result()
        for (_, port), target in self.cluster.servers.items():
            listener = self._inside.submit(socket.create_server, ("127.0.0.1", port)).result()
            self._relays.append(_Relay(listener, target))
        process.stdin.close()
        process.stdout.close()
        return process

    def _script(self) -> str:
        """Return what makes the root and becomes the container's process."""
        root = self._folder / "root"
        root.mkdir()
        lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=755 tmpfs {root}", f"cd {root}"]
        lines += ["mkdir -p etc proc dev opt/hotplate tmp", "cp -a /bin /sbin /lib* ."]
        lines += [f"cp -L /etc/{name} etc/ 2>/dev/null || true" for name in COPIED]
        lines += [f"echo 127.0.0.1 localhost {' '.join(name for name, _ in self.cluster.servers)} > etc/hosts"]
        lines += ["mount -t proc proc proc", "mount --rbind /dev dev"]
        lines += [f"mkdir -p .{self._image.directory}", f"chown {self._user()} .{self._image.directory}"]
        for mount in self.container.get("volumeMounts", []):
            lines += self._mount(mount)
        # After the volumes, for this repository may be below one of them, as /tmp.
        for path in dict.fromkeys(SHARED):
            lines += [f"mkdir -p .{path}", f"mount --bind {path} .{path}", f"mount -o remount,bind,ro .{path}"]
        lines += [f"mount --bind {Path(sys.prefix)} opt/hotplate", "mount -o remount,bind,ro opt/hotplate"]
        if self.container["securityContext"].get("readOnlyRootFilesystem"):
            lines += ["mount -o remount,ro ."]
        lines += ["ip link set lo up", "echo up", "read -r go || true", "exec >&2"]
        return "\n".join([*lines, f"exec chroot . {shlex.join(self._as_user(self._command()))}"])

    def _mount(self, mount: Object) -> Iterator[str]:
        """Yield what brings a volume to its place."""
        (volume,) = [each for each in self.spec["volumes"] if each["name"] == mount["name"]]
        place = "." + mount["mountPath"]
        yield f"mkdir -p {place}"
        if "emptyDir" in volume:
            size = str(volume["emptyDir"].get("sizeLimit", "64Mi")).removesuffix("i")
            yield f"mount -t tmpfs -o mode=777,size={size} tmpfs {place}"
            return
        yield f"mount --bind {self._volume(volume)} {place}"
        if mount.get("readOnly") or "persistentVolumeClaim" not in volume:
            yield f"mount -o remount,bind,ro {place}"

    def _volume(self, volume: Object) -> Path:
        """Return the folder that a volume is, with the rights that a kubelet gives to `fsGroup`."""
        group = int(self.spec["securityContext"]["fsGroup"])
        if claim := volume.get("persistentVolumeClaim"):
            claimed = self.cluster.claims[claim["claimName"]]
            for path in (claimed, *claimed.rglob("*")):
                os.chown(path, -1, group)
                path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))
            return claimed
        folder = self._folder / str(volume["name"])
        folder.mkdir()
        if secret := volume.get("secret"):
            name, mode = secret["secretName"], secret.get("defaultMode", 0o644)
            assert name in self.cluster.secrets or secret.get("optional"), f"the secret {name} is missing"
            files = self.cluster.secrets.get(name, {})
        else:
            mode, files = 0o644, self.cluster.named("ConfigMap", volume["configMap"]["name"])["data"]
        for file, text in files.items():
            (folder / file).write_text(text)
            os.chown(folder / file, 0, group)
            (folder / file).chmod(mode)
        return folder

    def _command(self) -> list[str]:
        if "command" in self.container:
            return [*self.container["command"], *self.container.get("args", [])]
        return [*self._image.entrypoint, *self.container.get("args", self._image.words)]

    def _environment(self) -> dict[str, str]:
        found = dict(self._image.environment)
        for source in self.container.get("envFrom", []):
            found |= self.cluster.named("ConfigMap", source["configMapRef"]["name"])["data"]
        found |= {each["name"]: each["value"] for each in self.container.get("env", [])}
        assert self._changed.keys() <= found.keys()
        return found | self._changed

    def _user(self) -> str:
        context = self.spec["securityContext"] | self.container["securityContext"]
        return f"{context['runAsUser']}:{context['runAsGroup']}"

    def _as_user(self, words: Sequence[str]) -> list[str]:
        """Return what runs a command with the rights and the environment of the container."""
        context = self.spec["securityContext"] | self.container["securityContext"]
        rights = [
            f"--reuid={context['runAsUser']}",
            f"--regid={context['runAsGroup']}",
            f"--groups={context['fsGroup']}",
        ]
        if context["capabilities"]["drop"] == ["ALL"]:
            rights += ["--bounding-set=-all", "--inh-caps=-all"]
        if not context["allowPrivilegeEscalation"]:
            rights += ["--no-new-privs"]
        variables = [f"{name}={value}" for name, value in self._environment().items()]
        environment = ["env", "--ignore-environment", f"--chdir={self._image.directory}", *variables]
        return ["/usr/bin/setpriv", *rights, *environment, *words]

    def _probe(self) -> None:
        """Be its kubelet: first the startup probe, then both others, each in its period."""
        startup = self.container["startupProbe"]
        failed = 0
        while not self._passes(startup):
            failed += 1
            if failed >= startup["failureThreshold"] or self._over.wait(startup["periodSeconds"]):
                self.failed_probes.append("startupProbe")
                return
        probes = {name: self.container[name] for name in ("readinessProbe", "livenessProbe")}
        due, failures = dict.fromkeys(probes, time.monotonic()), dict.fromkeys(probes, 0)
        while not self._over.wait(max(0.0, min(due.values()) - time.monotonic())):
            name = min(due, key=lambda each: due[each])
            probe = probes[name]
            due[name] = time.monotonic() + probe["periodSeconds"]
            failures[name] = 0 if self._passes(probe) else failures[name] + 1
            is_failed = failures[name] >= probe["failureThreshold"]
            if name == "readinessProbe":
                self.is_ready = failures[name] == 0 or (self.is_ready and not is_failed)
            if is_failed and not self._over.is_set():
                self.failed_probes.append(name)

    def _passes(self, probe: Object) -> bool:
        target = probe["httpGet"]
        with suppress(OSError, http.client.HTTPException):
            return status_of(self, self.port(target["port"]), target["path"], probe["timeoutSeconds"]) < 400
        return False


def status_of(pod: Pod, port: int, path: str, timeout_s: float) -> int:
    """Request a path of a pod on a connection of its own; return the status."""
    with pod.connect(port, timeout_s) as connection:
        connection.settimeout(timeout_s)
        client = http.client.HTTPConnection("pod")
        client.sock = connection
        client.request("GET", path, headers={"Connection": "close"})
        with client.getresponse() as response:
            return response.status


@contextmanager
def running(cluster: Cluster, spec: Object, name: str, environment: Mapping[str, str] | None = None) -> Iterator[Pod]:
    """Run a pod until the block ends."""
    pod = Pod(cluster, spec, name, environment)
    try:
        yield pod
    finally:
        pod.close()


def _join_network(pid: int) -> None:
    """Let this thread, and what it opens from now on, be in the network of a child of *pid*."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    with Path(f"/proc/{child}/ns/net").open() as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


class _Relay:
    """Passes connections on to a port of this machine, until it is closed."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._port = port
        self._sockets = [listener]
        self._threads = [threading.Thread(target=self._accept, args=(listener,))]
        self._threads[0].start()

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):  # the other side was faster
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += (client, server)
                for ends in ((client, server), (server, client)):
                    self._threads.append(threading.Thread(target=_pump, args=ends))
                    self._threads[-1].start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Send on what comes, and then its end."""
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
