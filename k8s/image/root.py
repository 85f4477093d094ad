"""Images without a container engine: a Dockerfile's stages, executed in folders that chroot and unshare make roots.

Of the language only what k8s/Dockerfile has is understood; anything else is an error.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Each instruction, and the options that it may have here.
INSTRUCTIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(["FROM", "RUN", "LABEL", "ENV", "ARG", "WORKDIR", "USER"], frozenset()),
    **dict.fromkeys(["STOPSIGNAL", "ENTRYPOINT", "CMD", "EXPOSE"], frozenset()),
    "COPY": frozenset({"from"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "retries"}),
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What an image of Debian that is called slim leaves out.
_NOT_IN_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "var/cache/apt", "var/lib/apt")
# Where the settings of this machine stand in a root while an instruction runs; no image keeps them.
_MACHINE = "/run/machine"
Config = dict[str, Any]
"""The `config` object of an OCI image: Env, User, Entrypoint, Cmd, Labels, …."""


class DockerfileError(ValueError):
    """What the file says makes no sense, or is not understood here; the sentence names the line."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined; *value* is what follows its options."""

    name: str
    options: Mapping[str, str]
    value: str
    line: int

    def error(self, problem: object) -> DockerfileError:
        """Make the error that names this instruction."""
        return DockerfileError(f"line {self.line}, {self.name}: {problem}")

    def words(self, variables: Mapping[str, str]) -> list[str]:
        """Split the value as a shell would, and put variables in; KeyError for one that is not known."""
        return [string.Template(word).substitute(variables) for word in shlex.split(self.value)]

    def pairs(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Read NAME=VALUE pairs; ValueError for anything else."""
        return dict(word.split("=", 1) for word in self.words(variables))

    def command(self) -> list[str]:
        """Read a command: a JSON array, or else a line for the shell; ValueError for half an array."""
        value = self.value.removeprefix("CMD ")  # of a HEALTHCHECK
        words: list[str] = json.loads(value) if value.startswith("[") else ["/bin/sh", "-c", value]
        return words


@dataclass(frozen=True, slots=True)
class Stage:
    """What one FROM begins: the image or stage that it starts from, and what is done to it."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


def parse(text: str) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name; raises DockerfileError for what is not understood."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for instruction in _instructions(text):
        if instruction.name == "FROM":
            match = re.fullmatch(r"(\S+) AS ([a-z][a-z0-9-]*)", instruction.value)
            if match is None:
                raise instruction.error("takes IMAGE AS NAME")
            stage = stages[match[2]] = Stage(match[2], match[1])
        elif stage is None:
            raise instruction.error("nothing stands before the first FROM")
        else:
            stage.instructions.append(instruction)
    return stages


def _instructions(text: str) -> list[Instruction]:
    found, parts, first = [], list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        first = first if parts else number
        parts.append(stripped.removesuffix("\\").strip())
        if not stripped.endswith("\\"):
            found.append(_instruction(" ".join(parts), first))
            parts = []
    return found


def _instruction(text: str, line: int) -> Instruction:
    name, _, value = text.partition(" ")
    options: dict[str, str] = {}
    while match := re.match(r"--([a-z-]+)(?:=(\S+))?\s+", value):
        options[match[1]] = match[2] or ""
        value = value[match.end() :]
    instruction = Instruction(name, options, value, line)
    if name not in INSTRUCTIONS or not options.keys() <= INSTRUCTIONS[name]:
        raise instruction.error(f"{text!r} is not known here")
    return instruction


def ignored(patterns: str, path: str) -> bool:
    """Say whether a .dockerignore keeps *path*, relative to the context, out of it: the last line that fits decides."""
    out = False
    for line in map(str.strip, patterns.splitlines()):
        regex = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if line and not line.startswith("#") and re.fullmatch(f"{regex}(?:/.*)?", path):
            out = not line.startswith("!")
    return out


@dataclass(frozen=True, slots=True)
class Image:
    """A folder that is the root of an image, and what a container of it starts with."""

    root: Path
    config: Config

    def environment(self) -> dict[str, str]:
        """Return the variables of a container's environment."""
        return dict(pair.split("=", 1) for pair in self.config["Env"])

    def command(
        self,
        words: Sequence[str],
        environment: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
        *,
        read_only: bool = True,
    ) -> list[str]:
        """Return what runs *words* as a restricted pod does: no capabilities, only /tmp and *mounts* to write to."""
        variables = self.environment() | dict(environment or {})
        user = str(self.config.get("User") or "0:0")
        directory = str(self.config.get("WorkingDir") or "/")
        return _enter(self.root, words, variables, mounts or {}, user=user, directory=directory, read_only=read_only)


class Builder:
    """Builds targets of one Dockerfile; each stage is kept in the folder *cache* until something in it changes."""

    def __init__(self, stages: Mapping[str, Stage], context: Path, cache: Path) -> None:
        self._stages = stages
        self.context = context
        self._patterns = (context / ".dockerignore").read_text()
        self._cache = cache

    def build(self, name: str) -> Image:
        """Return the image of a stage; the caller holds the cache's lock (`locked`)."""
        return self._image(name)[0]

    def _image(self, name: str) -> tuple[Image, str]:
        stage = self._stages[name]
        if stage.base in self._stages:
            base, key = self._image(stage.base)
        else:
            base, key = _debian(stage.base, self._cache)
        for instruction in stage.instructions:
            key = self._key(key, instruction)
        folder = self._cache / name
        image = Image(folder / "root", {})
        built = folder / "config.json"
        if built.exists() and (kept := json.loads(built.read_text()))["key"] == key:
            return Image(image.root, kept["config"]), key
        print(f"building {name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", str(base.root), str(image.root)], check=True)
        image.config.update(json.loads(json.dumps(base.config)))
        _Execution(self, image).all(stage.instructions)
        built.write_text(json.dumps({"key": key, "config": image.config}, indent=2))
        return image, key

    def _key(self, before: str, instruction: Instruction) -> str:
        digest = hashlib.sha256(f"{before} {instruction.options} {instruction.name} {instruction.value}".encode())
        if instruction.name == "COPY":
            if "from" in instruction.options:
                digest.update(self._image(instruction.options["from"])[1].encode())
            else:
                for source in instruction.words({})[:-1]:
                    for path in self.context_files(instruction, source):
                        digest.update(f"{path.relative_to(self.context)} {path.lstat().st_mode:o}".encode())
                        digest.update(bytes(path.readlink()) if path.is_symlink() else path.read_bytes())
        return digest.hexdigest()

    def context_files(self, instruction: Instruction, source: str) -> list[Path]:
        """Return the files of the context that a source of COPY means, without those that .dockerignore keeps out."""
        start = self.context / source
        paths = [start] if start.is_file() else sorted(filter(_is_file_or_link, start.rglob("*")))
        found = [path for path in paths if not ignored(self._patterns, path.relative_to(self.context).as_posix())]
        if not found:
            raise instruction.error(f"{source} is not in the context (see .dockerignore)")
        return found


class _Execution:
    """Executes the instructions of one stage upon its image."""

    def __init__(self, builder: Builder, image: Image) -> None:
        self._builder = builder
        self._image = image
        self._arguments: dict[str, str] = {}

    def all(self, instructions: Sequence[Instruction]) -> None:
        """Execute instructions in order; raises DockerfileError for the first that fails."""
        for instruction in instructions:
            variables = self._image.environment() | self._arguments
            try:
                match instruction.name:
                    case "RUN":
                        self._run(instruction)
                    case "COPY":
                        self._copy(instruction, variables)
                    case _:
                        self._configure(instruction, variables)
            except DockerfileError:
                raise
            except (KeyError, ValueError) as error:
                raise instruction.error(repr(error)) from error

    def _configure(self, instruction: Instruction, variables: Mapping[str, str]) -> None:
        config = self._image.config
        match instruction.name:
            case "ARG":
                self._arguments |= instruction.pairs(variables)
            case "ENV":
                environment = self._image.environment() | instruction.pairs(variables)
                config["Env"] = [f"{name}={value}" for name, value in environment.items()]
            case "LABEL":
                config["Labels"] = config.get("Labels", {}) | instruction.pairs(variables)
            case "EXPOSE":
                config["ExposedPorts"] = {f"{port}/tcp": {} for port in instruction.words(variables)}
            case "WORKDIR":
                config["WorkingDir"] = instruction.value
                self._inside(instruction.value).mkdir(parents=True, exist_ok=True)
            case "USER":
                config["User"] = instruction.value
            case "STOPSIGNAL":
                config["StopSignal"] = instruction.value
            case "ENTRYPOINT" | "CMD":
                config[instruction.name.title()] = instruction.command()
            case "HEALTHCHECK" if instruction.value.startswith("CMD "):
                config["Healthcheck"] = {"Test": ["CMD", *instruction.command()], **instruction.options}
            case _:
                raise ValueError(f"{instruction.value} is not understood here")

    def _run(self, instruction: Instruction) -> None:
        settings, mounts = _machine()
        words = self._image.command(instruction.command(), self._arguments | settings, mounts, read_only=False)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise instruction.error(f"ended with {done.returncode}: {(done.stdout + done.stderr)[-4000:]}")

    def _copy(self, instruction: Instruction, variables: Mapping[str, str]) -> None:
        *sources, target = instruction.words(variables)
        into_folder = target.endswith("/") or len(sources) > 1
        for source in sources:
            if "from" in instruction.options:
                origin = self._builder.build(instruction.options["from"]).root / source.lstrip("/")
                files = [path for path in origin.rglob("*") if _is_file_or_link(path)] or [origin]
            else:
                origin = self._builder.context / source
                files = self._builder.context_files(instruction, source)
            for file in files:
                place = self._inside(target)
                if file != origin:
                    place /= file.relative_to(origin)
                elif into_folder:
                    place /= file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place, follow_symlinks=False)
                os.chown(place, 0, 0, follow_symlinks=False)

    def _inside(self, path: str) -> Path:
        directory = Path(str(self._image.config.get("WorkingDir", "/")))
        return self._image.root / (directory / path).relative_to("/")


def _is_file_or_link(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()  # as COPY takes a link for itself


def _debian(name: str, cache: Path) -> tuple[Image, str]:
    """Return the root that stands in for `debian:RELEASE-slim`, made by debootstrap once."""
    match = re.fullmatch(r"debian:([a-z]+)-slim", name)
    if match is None:
        raise DockerfileError(f"FROM {name}: debian:RELEASE-slim is what can be made here")
    image = Image(cache / f"debian-{match[1]}", {"Env": [f"PATH={_PATH}"]})
    if not image.root.exists():
        print(f"making {name} by debootstrap (a minute or two)", flush=True)
        half = image.root.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        policy = subprocess.run(["apt-cache", "policy"], capture_output=True, text=True, check=False).stdout
        mirror = re.findall(r"https?://\S+/debian(?= )", policy)[:1]  # debootstrap knows one itself
        subprocess.run(
            ["debootstrap", "--variant=minbase", match[1], str(half), *mirror], stdout=subprocess.DEVNULL, check=True
        )
        for folder in _NOT_IN_SLIM:
            shutil.rmtree(half / folder, ignore_errors=True)
        slim = "".join(f"path-exclude /{folder}/*\n" for folder in _NOT_IN_SLIM if folder.startswith("usr"))
        (half / "etc/resolv.conf").write_text("")
        (half / "etc/dpkg/dpkg.cfg.d/slim").write_text(slim)
        half.rename(image.root)
    return image, name


def _machine() -> tuple[dict[str, str], dict[Path, str]]:
    """Return how this machine reaches packages: pip's settings as variables, and the files that they and DNS need."""
    settings: dict[str, str] = {}
    mounts = {Path("/etc/resolv.conf"): "/etc/resolv.conf"}
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        words = []
        for word in value.strip("'").split():
            path = Path("/", word.removeprefix("file://"))
            if path.exists():
                shared = path.parent if word.startswith("file://") else path  # an index links to files beside it
                mounts[shared] = f"{_MACHINE}{shared}"
            words.append(word.replace(str(path), f"{_MACHINE}{path}") if path.exists() else word)
        settings["PIP_" + name.rpartition(".")[2].replace("-", "_").upper()] = " ".join(words)
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    return settings | proxies, mounts


def _enter(
    root: Path,
    words: Sequence[str],
    environment: Mapping[str, str],
    mounts: Mapping[Path, str],
    *,
    user: str,
    directory: str,
    read_only: bool,
) -> list[str]:
    """Return the command that runs *words* as process 1 in *root*, whose mounts end with it."""
    lines = ["set -e", "mount --make-rprivate /", f"mount --bind {shlex.quote(str(root))} {shlex.quote(str(root))}"]
    lines += [f"cd {shlex.quote(str(root))}", "mount -t proc proc proc"]
    # As engines and kubelets have it there.
    lines.append("[ -e etc/hosts ] || echo 127.0.0.1 localhost > etc/hosts")
    lines += [f"mount -t tmpfs tmpfs {folder}" for folder in ("run", "dev/shm", *(("tmp",) if read_only else ()))]
    for source, target in mounts.items():
        place = shlex.quote(target.lstrip("/"))
        if target.startswith(_MACHINE):
            lines.append(f"mkdir -p {place}" if source.is_dir() else f"install -D /dev/null {place}")
        lines.append(f"mount --bind {shlex.quote(str(source))} {place}")
    if read_only:
        lines.append("mount -o remount,bind,ro .")
    uid, _, gid = user.partition(":")
    rights = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if uid != "0" else []
    variables = [f"{name}={value}" for name, value in environment.items()]
    inside = ["/usr/bin/setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", *rights]
    inside += ["/usr/bin/env", "--ignore-environment", f"--chdir={directory}", *variables, *words]
    lines.append(f"exec chroot . {shlex.join(inside)}")
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(lines)]


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Keep others out of the folder *cache*, which is made where there is none, until the block ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def why_not() -> str | None:
    """Say why images cannot be made here, or None; brings debootstrap where it is missing."""
    if os.geteuid() != 0:
        return "it takes root, to make roots of its own"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        return "this machine does not allow namespaces (unshare)"
    install = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", "debootstrap"]
    if shutil.which("debootstrap") is None:
        subprocess.run(install, capture_output=True, check=False)
    return "debootstrap is missing (apt-get install debootstrap)" if shutil.which("debootstrap") is None else None
