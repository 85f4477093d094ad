"""`make image-check`: builds the targets of k8s/Dockerfile without a container engine, and tries what they promise."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hotplate import __version__
from k8s.image.root import Builder, Image, locked, parse, why_not

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hotplate" / "image"
_DATA = "/var/lib/hotplate"
# What has no place in an image that only runs: compilers, package managers of Python, and what they leave behind.
_UNWANTED = ("usr/bin/*gcc*", "usr/bin/cc", "usr/bin/pip*", "opt/hotplate/bin/pip*", "root/.cache", "build")


def main() -> int:
    """Build and check, print sizes, and leave the two lists of contents in dist/; skips by name where it may not."""
    if reason := why_not():
        print(f"The images are not checked: {reason}.")
        return int("image" in os.environ.get("HOTPLATE_REQUIRE", "").split(","))
    with locked(CACHE), tempfile.TemporaryDirectory(prefix="hotplate-image-") as scratch:
        builder = Builder(parse((REPOSITORY / "k8s/Dockerfile").read_text()), REPOSITORY, CACHE)
        images = {name: builder.build(name) for name in ("serve", "offline", "spark")}
        for name, image in images.items():
            check_files(image)
            check_contents(image, name)
            check_version(image)
            size = sum(path.lstat().st_size for path in image.root.rglob("*") if not path.is_dir())
            print(f"{name}: {size // 1_000_000} MB")
        check_numpy(images)
        data = Path(scratch) / "data"
        data.mkdir()
        os.chown(data, 10001, 10001)
        publish(images["offline"], data)
        check_service(images["serve"], data)
        check_spark(images, data)
    print("The images do what they promise, with a root that nobody can write to.")
    return 0


def expect(holds: bool, sentence: str) -> None:  # noqa: FBT001 -- what is expected comes first, as in an assert
    """End with *sentence* where what is expected does not hold."""
    if not holds:
        sys.exit(f"The image is not fit: {sentence}")


def ran(
    image: Image, *words: str, variables: dict[str, str] | None = None, mounts: dict[Path, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a container of *image*, to its end."""
    command = image.command(words, variables, mounts)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def check_version(image: Image) -> None:
    """The entry point starts, and image, label and repository are of one version."""
    done = ran(image, *image.config["Entrypoint"], "--version")
    label = image.config["Labels"]["org.opencontainers.image.version"]
    expect(__version__ in done.stdout, f"--version says {done.stdout + done.stderr!r}, where {__version__} is built")
    expect(label == __version__, f"its label says {label}, where {__version__} is built")


def check_files(image: Image) -> None:
    """No rights by a file, nothing that only a build needs, nothing that its user could change, and bytecode."""
    for path in image.root.rglob("*"):
        if path.is_symlink():
            continue
        mode, name = path.stat(), path.relative_to(image.root)
        expect(path.is_dir() or not mode.st_mode & 0o6000, f"/{name} has a setuid or setgid bit")
        own = mode.st_uid == 10001 or (mode.st_mode & 0o002 and not mode.st_mode & 0o1000 and path.is_file())
        expect(not own or f"/{name}" == _DATA, f"its user could change /{name}")
    for pattern in _UNWANTED:
        expect(not (left := list(image.root.glob(pattern))), f"it holds {left}")
    bytecode = "opt/hotplate/lib/python3.11/site-packages/{}/__pycache__/__init__.cpython-311.pyc"
    for package in ("aiohttp", "hotplate/serve", "hotplate/stores"):
        expect((image.root / bytecode.format(package)).exists(), f"{package} has no bytecode")


def check_contents(image: Image, name: str) -> None:
    """Its list of contents (CycloneDX) has what is locked, in that version, and nothing else; dist/ keeps a copy."""
    contents = (image.root / "opt/hotplate/sbom.cdx.json").read_text()
    found = {part["name"].lower().replace("_", "-"): part["version"] for part in json.loads(contents)["components"]}
    lock = (REPOSITORY / f"requirements/{name}.lock").read_text()
    versions = set(re.findall(r"^([a-z0-9-]+)==([^ ]+)", lock, re.MULTILINE))  # several, by version of Python
    expect(found.pop("hotplate", None) == __version__, "its list of contents lacks hotplate")
    wrong = found.items() - versions
    expect(bool(found) and not wrong, f"requirements/{name}.lock has other versions than {wrong}")
    (REPOSITORY / "dist").mkdir(exist_ok=True)
    title = image.config["Labels"]["org.opencontainers.image.title"]
    (REPOSITORY / f"dist/{title}.cdx.json").write_text(contents)


def check_numpy(images: dict[str, Image]) -> None:
    """The serving image carries nothing that only offline jobs need."""
    for module in ("numpy", "scipy", "implicit", "polars"):
        for name, image in images.items():
            done = ran(image, "python", "-c", f"import {module}")
            expect((done.returncode == 0) == (name != "serve"), f"import {module} in {name}: {done.stderr[-200:]!r}")


def publish(image: Image, data: Path) -> None:
    """Train on a log of its own and publish, in the offline image, into the folder *data*."""
    rows = "".join(f"u{user},i{(user * 7 + step * step) % 40}\n" for user in range(200) for step in range(9))
    (data / "log.csv").write_text("user,item\n" + rows)
    train = ("train", f"{_DATA}/log.csv", "--no-tune", "--factors", "8", "--out", f"{_DATA}/model")
    for words in (train, ("publish", f"{_DATA}/model", "--store", f"file://{_DATA}/store")):
        done = ran(image, *image.config["Entrypoint"], *words, mounts={data: _DATA})
        expect(done.returncode == 0, f"hotplate {words[0]} ended with {done.returncode}: {done.stderr[-1000:]}")


def check_service(image: Image, data: Path) -> None:
    """The default command serves the release, its health check follows it, and SIGTERM ends it well as process 1."""
    port, health_port = free_port(), free_port()
    variables = {"HOTPLATE_STORE": f"file://{_DATA}/store", "HOTPLATE_ANONYMOUS": "1", "HOTPLATE_PORT": str(port)}
    variables |= {"HOTPLATE_ADMIN_PORT": "0", "HOTPLATE_HEALTH_PORT": str(health_port), "HOTPLATE_DRAIN_DELAY": "0"}
    health = image.command(image.config["Healthcheck"]["Test"][1:], variables)
    command = image.command(image.config["Entrypoint"] + image.config["Cmd"], variables, {data: _DATA})
    log = data / "serve.log"
    with serving(command, log) as process:
        deadline = time.monotonic() + 60
        while answer(health_port, "/readyz")[0] != 200:
            expect(process.poll() is None and time.monotonic() < deadline, f"serve does not come up: {log.read_text()}")
            time.sleep(0.1)
        for either in (port, health_port):
            expect(answer(either, "/livez")[0] == 200, "/livez does not answer 200")
        expect(b'"source":"personal"' in answer(port, "/v1/recommendations/u7")[1], "u7 gets no list of its own")
        expect(subprocess.run(health, capture_output=True, check=False).returncode == 0, "the health check fails")
        [inner] = children(process)
        status = Path(f"/proc/{inner}/status").read_text()
        expect(re.search(r"^Uid:\t10001\t", status, re.MULTILINE) is not None, "it does not run as 10001")
        expect(re.search(r"^CapEff:\t0+$", status, re.MULTILINE) is not None, "it has capabilities")
        os.kill(inner, signal.SIGTERM)
        expect(process.wait(timeout=30) == 0, "it does not end well after SIGTERM")
    expect(subprocess.run(health, capture_output=True, check=False).returncode != 0, "the health check is blind")


def check_spark(images: dict[str, Image], data: Path) -> None:
    """A master, a worker and drivers, each at an address of its own as pods have, learn and publish.

    Ports, cores and memory are those of k8s/components/spark; executors publish into an emulated Cosmos DB.
    """
    shutil.copytree(REPOSITORY / "k8s/components/spark", data / "spark")
    image, port = images["spark"], str(free_port())
    master, worker, driver = "127.0.0.2", "127.0.0.3", "127.0.0.4"

    def at(address: str) -> dict[str, str]:
        own = {"SPARK_LOCAL_IP": address, "SPARK_LOCAL_HOSTNAME": address, "SPARK_CONF_DIR": f"{_DATA}/spark"}
        store = f"cosmos+http://127.0.0.1:{port}/lists?ru=30000"
        return own | {"HOTPLATE_MASTER": f"spark://{master}:7077", "HOTPLATE_STORE": store}

    def daemon(name: str, address: str, *words: str) -> list[str]:
        command = ("/opt/hotplate/bin/spark-class", f"org.apache.spark.deploy.{name}", "--host", address, *words)
        return image.command(command, at(address), {data: _DATA})

    size = ("--port", "7078", "--cores", "4", "--memory", "6g")
    others = {
        "emulator": images["offline"].command([*image.config["Entrypoint"], "cosmos-emulator", "--port", port]),
        "master": daemon("master.Master", master),
        "worker": daemon("worker.Worker", worker, *size, f"spark://{master}:7077"),
    }
    train = ("train", f"{_DATA}/log.csv", "--engine", "spark", "--factors", "8", "--iterations", "3", "--split", "none")
    with contextlib.ExitStack() as stack:
        for name, command in others.items():
            stack.enter_context(serving(command, data / f"{name}.log"))
        for words in ((*train, "--out", f"{_DATA}/on-spark"), ("publish", f"{_DATA}/on-spark"), ("lookup", "u7")):
            done = ran(image, *image.config["Entrypoint"], *words, variables=at(driver), mounts={data: _DATA})
            logs = "".join((data / f"{name}.log").read_text()[-1000:] for name in others)
            expect(
                done.returncode == 0, f"{words[0]} on Spark ended with {done.returncode}: {done.stderr[-2000:]}{logs}"
            )


@contextlib.contextmanager
def serving(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, at the latest; what it says goes to *log*."""
    with log.open("wb") as stream, subprocess.Popen(command, stderr=stream, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            # Whoever became another user does not end with its parent.
            for inner in children(process):
                os.kill(inner, signal.SIGKILL)
            process.kill()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """Return who a process has started, of a container its process 1; nobody once it is over."""
    try:
        return [int(found) for found in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


def answer(port: int, path: str) -> tuple[int, bytes]:
    """Get a path of what listens on loopback: status and body, or 0 where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
