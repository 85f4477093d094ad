"""The registry: models by name and version, what they were made of, and what became of them, as files anybody can read.

    NAME/VERSION/model/…          the model folder as it is
    NAME/VERSION/entry.json       what it was made of; written last: without it there is no version
    NAME/VERSION/claim.json       who took the number, and since when
    NAME/changes/00000001.json    tags, stages and releases that came later, one a file, in order

Nothing is ever overwritten. A writer takes the number of a version or a change by creating its file, which fails if the
file exists. A file that is half written, because its writer is at work or was killed, is not JSON, and is ignored.
"""

import json
import os
import re
import secrets
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.model import code_versions, describe, replaced_folder
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import default_url
from hotplate.stores.folders import LOCK, flush
from hotplate.stores.urls import redacted, scheme_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_STAGE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
_ENTRY = re.compile(r"([^/]+)/([1-9]\d*)/entry\.json")
_CLAIM = re.compile(r"[^/]+/([1-9]\d*)/claim\.json")
_CHANGE = re.compile(r"[^/]+/changes/(\d{8})\.json")
# No upload of a model takes so long: a number that was taken before, and has no entry, is a dead writer's.
_CLAIM_LASTS = timedelta(days=1)
# What to do about the errors of somebody else's file system.
_REACH = "see that its bucket or container is there and may be written to, and that the environment has what reaches it"
# What is taken over from the description of a model.
_ORIGIN = (
    "engine", "created_at", "params", "metrics", "data", "users", "items", "pairs", "versions", "python", "commit",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PublishedRelease:
    """A release that was published from a model: its id, the URL of its store without secrets, and when."""

    id: str
    store: str
    published_at: str


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model; lives as long as the command.

    origin   of the model's own description: engine, created_at, params, metrics, data (with its fingerprint), users,
             items, pairs, and of the training versions of libraries, python and commit (or None); and, of the
             registration, the folder, and by `registered_with` what of its versions, python and commit is different
    """

    name: str
    version: int
    registered_at: str
    origin: dict[str, Any]
    tags: dict[str, str]
    stages: tuple[str, ...] = ()
    releases: tuple[PublishedRelease, ...] = ()

    @property
    def reference(self) -> str:
        """What this version is called everywhere: NAME@VERSION."""
        return f"{self.name}@{self.version}"


class Registry:
    """The models in one folder, or at any URL that fsspec knows; lives as long as the command."""

    def __init__(self, url: str | None = None) -> None:
        """Open the registry at *url*, by default in the user's own data folder, next to the default store.

        Raises SettingError for one that cannot be opened, or needs a package more.
        """
        if url == "":
            raise SettingError("The URL of the registry is empty; name a folder or a URL, or leave --registry out.")
        self._url = url or f"{default_url()}-models"
        self.shown = redacted(self._url)
        try:
            self._files, root = fsspec.core.url_to_fs(self._url)
        except ImportError as error:
            raise SettingError(
                f"{scheme_of(self._url)}:// needs a package that is not installed ({error}); install it with pip"
            ) from error
        except Exception as error:  # each file system has its own, which may hold secrets of the URL
            if scheme_of(self._url) not in fsspec.available_protocols():
                raise SettingError(f"{self.shown} is not a URL of a registry; its scheme is not known") from error
            raise SettingError(f"{self.shown} cannot be opened: {type(error).__name__}; {_REACH}") from error
        self._root = root.rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)
        if self._is_local and Path(self._root).exists() and not Path(self._root).is_dir():
            raise SettingError(f"{self.shown} is not a folder; name one for the registry.")

    def entries(self, name: str | None = None) -> list[ModelVersion]:
        """Return all versions, or those of *name*, in order; DataError if there is none of that name."""
        if name is not None:
            _require(_NAME, "name of a model", name)
        paths = self._paths(name)
        found, changes = self._read(_matching(_ENTRY, paths)), self._read(_matching(_CHANGE, paths))
        entries = [_apply(_entry(content), changes) for content in found.values()]
        if name is not None and not entries:
            known = sorted({entry.name for entry in self.entries()})
            raise DataError(f"There is no model {name} in {self.shown}; {_listed('models', known)}")
        return sorted(entries, key=lambda entry: (entry.name, entry.version))

    def find(self, reference: str) -> ModelVersion:
        """Return the version that NAME@VERSION or NAME@STAGE names, or the last one of NAME; DataError without one."""
        name, at, which = reference.partition("@")
        entries = self.entries(name)
        if not at:
            return entries[-1]
        for entry in entries:
            if which == str(entry.version) or which in entry.stages:
                return entry
        versions = [str(entry.version) for entry in entries]
        stages = sorted(stage for entry in entries for stage in entry.stages)
        raise DataError(
            f"The model {name} has no version or stage {which!r} in {self.shown}; "
            f"{_listed('versions', versions)}, {_listed('stages', stages)}"
        )

    def register(
        self, model: Path, name: str, tags: Mapping[str, str] | None = None, stage: str | None = None
    ) -> ModelVersion:
        """Copy the model folder as the next version of *name*, and return it; what killed writers left is removed.

        Raises DataError for what is not a whole model, SettingError for a name, tag or stage that cannot be one.
        """
        _require(_NAME, "name of a model", name)
        _require_change(tags or {}, stage)
        origin = _origin(model)
        files = [each for each in sorted(model.rglob("*")) if each.is_file() and each.name != LOCK]
        self._remove_leftovers(name)
        claim = {"token": secrets.token_hex(8), "host": socket.gethostname(), "process": os.getpid(), "since": _now()}
        version = self._take_number(_CLAIM, name, name + "/{}/claim.json", claim)
        folder = f"{name}/{version}"
        try:
            for file in files:
                with self._written(f"{folder}/model/{file.relative_to(model).as_posix()}") as path:
                    self._files.put_file(str(file), path)
        except DataError:  # a full disk would stay so
            with suppress(DataError):
                self._remove_version(f"{folder}/claim.json")
            raise
        if self._read([f"{folder}/claim.json"]).get(f"{folder}/claim.json") != claim:
            raise DataError(f"The registration of {name}@{version} took longer than a day, and was removed; repeat it.")
        content = {
            "name": name,
            "version": version,
            "registered_at": _now(),
            "origin": origin,
            "tags": dict(tags or {}),
            "files": {file.relative_to(model).as_posix(): file.stat().st_size for file in files},
        }
        self._create(f"{folder}/entry.json", content)
        return self.change(f"{name}@{version}", stage=stage) if stage else _entry(content)

    def change(self, reference: str, tags: Mapping[str, str] | None = None, stage: str | None = None) -> ModelVersion:
        """Add *tags* to a version, and give it a *stage*, which is taken from the version that has it; return it."""
        _require_change(tags or {}, stage)
        entry = self.find(reference)
        if tags:
            self._append(entry, {"tags": dict(tags)})
        if stage and stage not in entry.stages:
            self._append(entry, {"stage": stage})
        return self.find(entry.reference)

    def record_release(self, reference: str, store: str, release: ReleaseId) -> None:
        """Record that *release* was published from a version to the store at the URL *store*, of which no secret stays.

        Called again with the same it changes nothing.
        """
        entry = self.find(reference)
        published = {"id": str(release), "store": redacted(store)}
        if not any(published == {"id": each.id, "store": each.store} for each in entry.releases):
            self._append(entry, {"release": published})

    def pull(self, reference: str, out: Path) -> ModelVersion:
        """Copy a version's model to the folder *out*, which replaces a model that is there; DataError if cut."""
        entry = self.find(reference)
        folder = f"{entry.name}/{entry.version}"
        sizes = self._read([f"{folder}/entry.json"])[f"{folder}/entry.json"]["files"]
        with replaced_folder(out) as draft:
            for name, size in sizes.items():
                target = draft / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._errors(entry.reference):
                    self._files.get_file(self._full(f"{folder}/model/{name}"), str(target))
                if target.stat().st_size != size:
                    raise DataError(f"{name} of {entry.reference} in {self.shown} is cut: it had {size:,} bytes")
        return entry

    def _append(self, entry: ModelVersion, change: dict[str, Any]) -> None:
        content = {"version": entry.version, "at": _now(), **change}
        self._take_number(_CHANGE, entry.name, entry.name + "/changes/{:08}.json", content)

    def _take_number(self, taken: re.Pattern[str], name: str, path: str, content: dict[str, Any]) -> int:
        """Write *content* to the *path* of the next number that is not *taken*, and return the number."""
        numbers = [int(match[1]) for match in map(taken.fullmatch, self._paths(name)) if match]
        number = max(numbers, default=0) + 1
        while not self._create(path.format(number), content):
            number += 1
        return number

    def _remove_leftovers(self, name: str) -> None:
        """Remove the versions of *name* whose writers died before they were complete."""
        paths = self._paths(name)
        complete = {f"{path.removesuffix('entry.json')}claim.json" for path in self._read(_matching(_ENTRY, paths))}
        for path, claim in self._read(_matching(_CLAIM, paths)).items():
            if path not in complete and _is_dead(claim):
                self._remove_version(path)

    def _remove_version(self, claim: str) -> None:
        """Remove a version that is not complete, its claim last, because this may be killed in between."""
        with self._errors(claim):
            self._files.invalidate_cache()
            found = set(self._files.find(self._full(claim.removesuffix("/claim.json")))) - {self._full(claim)}
            for leftover in (*found, self._full(claim)):
                self._files.rm_file(leftover)

    def _paths(self, name: str | None) -> list[str]:
        """Return entries, claims and changes, as they are now, relative to the root."""
        folder, depth = (self._root, 3) if name is None else (f"{self._root}/{name}", 2)
        with self._errors(name or "its root"):
            self._files.invalidate_cache()
            found = self._files.find(folder, maxdepth=depth)
        return [path[len(self._root) + 1 :] for path in found]

    def _read(self, paths: list[str]) -> dict[str, dict[str, Any]]:
        """Return the JSON of each path; one that is being written just now, or was cut with its writer, is left out."""
        contents = dict[str, dict[str, Any]]()
        with self._errors(paths[0] if paths else ""):
            # All at once, if the file system can, and unlike `cat` without a meaning for brackets and stars.
            texts = self._files.cat_ranges([self._full(path) for path in paths], None, None) if paths else []
            for path, text in zip(paths, texts, strict=True):
                if isinstance(text, Exception):
                    raise text
                with suppress(ValueError):
                    contents[path] = json.loads(text)
        return contents

    def _create(self, path: str, content: dict[str, Any]) -> bool:
        """Write *content* to a new file; return whether there was none."""
        text = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        try:
            with self._written(path) as full, self._files.open(full, "xb") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def _written(self, path: str) -> Iterator[str]:
        """Yield where to write a file; in a folder it then survives a power cut."""
        full = self._full(path)
        with self._errors(path):
            if self._is_local:
                Path(full).parent.mkdir(parents=True, exist_ok=True)
            yield full
            if self._is_local:
                flush(Path(full))
                flush(Path(full).parent)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Name what a file system, anybody's, could not do; its own words may hold the secrets of its URL."""
        try:
            yield
        except FileExistsError:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            advice = "" if self._is_local else f"; {_REACH}"
            raise DataError(f"The registry {self.shown} failed at {path}: {reason}{advice}") from error


def _origin(model: Path) -> dict[str, Any]:
    """Return what a model says of its making, where it lies, and what is different now in the code that made it."""
    described = describe(model)
    origin: dict[str, Any] = {key: described.get(key) for key in _ORIGIN} | {"folder": str(model.absolute())}
    different = {name: value for name, value in code_versions().items() if value != origin[name]}
    return origin | ({"registered_with": different} if different else {})


def _apply(entry: ModelVersion, changes: Mapping[str, dict[str, Any]]) -> ModelVersion:
    """Return *entry* with what came later; *changes* by path, in order."""
    tags, stages, releases = dict(entry.tags), set[str](), list[PublishedRelease]()
    for path, change in changes.items():
        if not path.startswith(f"{entry.name}/"):
            continue
        own = change["version"] == entry.version
        if stage := change.get("stage"):
            stages = stages | {stage} if own else stages - {stage}
        elif own and "tags" in change:
            tags |= change["tags"]
        elif own and "release" in change:
            releases.append(PublishedRelease(**change["release"], published_at=change["at"]))
    return replace(entry, tags=tags, stages=tuple(sorted(stages)), releases=tuple(releases))


def _entry(content: dict[str, Any]) -> ModelVersion:
    return ModelVersion(**{name: content[name] for name in ("name", "version", "registered_at", "origin", "tags")})


def _is_dead(claim: Mapping[str, Any]) -> bool:
    """Return whether the writer of a version died: its process is gone from this host, or it is long overdue."""
    if datetime.fromisoformat(claim["since"]) + _CLAIM_LASTS < datetime.now(UTC):
        return True
    if claim["host"] != socket.gethostname():
        return False
    try:
        os.kill(claim["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's
        pass
    return False


def _require_change(tags: Mapping[str, str], stage: str | None) -> None:
    for key in tags:
        _require(_NAME, "name of a tag", key)
    if stage is not None:
        _require(_STAGE, "name of a stage", stage)


def _require(pattern: re.Pattern[str], what: str, name: str) -> None:
    if not pattern.fullmatch(name):
        start = "a letter" if pattern is _STAGE else "a letter or digit"
        raise SettingError(
            f"{name!r} cannot be the {what}; use up to 100 letters, digits, dots, dashes and underscores, {start} first"
        )


def _matching(pattern: re.Pattern[str], paths: Iterable[str]) -> list[str]:
    return sorted(path for path in paths if pattern.fullmatch(path))


def _listed(what: str, names: list[str]) -> str:
    return f"{what}: {', '.join(names)}" if names else f"it has no {what}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
