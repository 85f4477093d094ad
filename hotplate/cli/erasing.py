"""The work of `hotplate users`: erased users, and the places that still hold them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from hotplate.cli.options import Places
from hotplate.cli.terminal import counted, print_result, shown_store, with_store
from hotplate.serve.consumed import KEPT
from hotplate.serve.events import SegmentFolder
from hotplate.stores.erasure_log import lost_sentence
from hotplate.stores.errors import StoreMisused
from hotplate.stores.event_log import SegmentReader, is_open_segment, is_segment
from hotplate.stores.urls import url_of
from hotplate.stores.users import Erasure, erase_users, find_users


@dataclass(frozen=True, slots=True)
class _LocalFolder:
    """Events on this machine, read without fsspec, which is an extra."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        if not self.path.is_dir():
            raise StoreMisused(f"the folder {self.path} does not exist")
        return sorted(file.name for file in self.path.iterdir())

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """The users in each place besides the store, and the places that were not searched."""

    holding: dict[str, list[str]]
    unchecked: list[str]


def erase(users: Sequence[str], places: Places) -> None:
    """Erase users, and print where they are still."""
    elsewhere = _search(users, places)
    erasure = with_store(places.store, lambda opened: erase_users(opened, users))
    _print(erasure, elsewhere, places, f"of {len(set(users))} are erased from")


def find(users: Sequence[str], places: Places) -> None:
    """Print where users are."""
    elsewhere = _search(users, places)
    erasure = with_store(places.store, lambda opened: find_users(opened, users))
    _print(erasure, elsewhere, places, f"of {len(set(users))} are marked as erased in")


def _search(users: Sequence[str], places: Places) -> _Elsewhere:
    """Search backups, model folders and events for *users*; hotplate reports what it finds, and deletes nothing there.

    Returns the users that each place holds, and what was not searched. Raises StoreMisused for a missing folder, before
    anything is erased.
    """
    for path in (*places.backups, *places.models):
        if not path.is_dir():
            raise StoreMisused(f"the folder {path} does not exist")
    folders = [_event_folder(url) for url in places.events]
    names = {folder: folder.names() for folder in folders}
    holding = {str(path): _in_model(path, users) for path in places.models}
    holding |= {folder.shown: _in_events(folder, names[folder], users) for folder in folders}
    holding |= {str(path): _in_backup(path, users) for path in places.backups}
    searched = {"backups": places.backups, "model folders": places.models, "events": places.events}
    unchecked = ["other stores", *(kind for kind, paths in searched.items() if not paths)]
    if any(is_open_segment(name) for segments in names.values() for name in segments):
        unchecked.append("open segments of events")
    return _Elsewhere(holding, unchecked)


def _print(erasure: Erasure, elsewhere: _Elsewhere, places: Places, state: str) -> None:
    """Print what is erased, with *state* as the verb of the first sentence, and what still holds the users."""
    facts = {
        **asdict(erasure),
        "store": shown_store(places.store, as_json=True),
        "elsewhere": elsewhere.holding,
        "not_checked": elsewhere.unchecked,
    }
    sentences = [f"{counted(len(erasure.erased), 'user')} {state} {shown_store(places.store)}"]
    if erasure.lost:
        sentences.append(lost_sentence(erasure.lost))
    if erasure.warning is not None:
        sentences.append(f"warning: {erasure.warning}")
    if erasure.deleted:
        sentences.append(f"{counted(erasure.deleted, 'row')} deleted")
    for release, held in erasure.holding.items():
        names = erasure.lists.get(release)
        listed = f", also in the list {', '.join(names)}," if names else ""
        sentences.append(f"release {release} holds {_quoted(held)}{listed} until it is pruned")
    sentences += [f"release {release} is being written, and was not searched" for release in erasure.being_written]
    sentences += [f"{path} holds {_quoted(held)}" for path, held in elsewhere.holding.items() if held]
    sentences.append(f"not searched: {', '.join(elsewhere.unchecked)}")
    print_result(facts, *sentences, as_json=places.as_json)


def _quoted(users: Iterable[str]) -> str:
    return ", ".join(map(repr, users))


def _event_folder(url: str) -> SegmentFolder | _LocalFolder:
    """Return a folder of events: a path of this machine, or a URL of fsspec."""
    return _LocalFolder(Path(url)) if url_of(url) is None else SegmentFolder(url)


def _in_backup(folder: Path, users: Sequence[str]) -> list[str]:
    """Return the users that a release of a backup holds, sorted."""
    releases = with_store(f"file://{folder.absolute()}", lambda opened: find_users(opened, users)).holding
    return sorted({user for held in releases.values() for user in held})


def _in_model(folder: Path, users: Sequence[str]) -> list[str]:
    """Return the users that a model was trained on, in the given order."""
    from hotplate.offline.model import load  # an extra

    known = set(load(folder).matrix.user_ids)
    return [user for user in dict.fromkeys(users) if user in known]


def _in_events(folder: SegmentFolder | _LocalFolder, names: Iterable[str], users: Sequence[str]) -> list[str]:
    """Return those of *users*, in their order, that occur in a folder's events or in its file of consumed items.

    *names* are the folder's files; only segments, which hold events as lines of JSON, and that file are read.
    """
    wanted = set(users)
    present = set[str]()
    for name in names:
        if not is_segment(name) and name != KEPT:
            continue
        for line in SegmentReader(folder.read(name)):
            user = orjson.loads(line).get("user")
            present |= {user} & wanted
    return [user for user in dict.fromkeys(users) if user in present]
