"""`hotplate users`: erase users, find data that still contain them, and accept the loss of their records."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson

from hotplate.base.report import format_count
from hotplate.cli.flags import Verbs
from hotplate.cli.options import Places
from hotplate.cli.terminal import StoreUrl, print_result, run_on_store, shown_store_url
from hotplate.stores.change_warnings import with_warnings
from hotplate.stores.errors import StoreMisused
from hotplate.stores.options import Argument, Flag
from hotplate.stores.urls import url_of

if TYPE_CHECKING:
    from hotplate.serve.events.segment_folder import SegmentFolder
    from hotplate.stores.users import Erasure

app = Verbs(
    help="Erase users, find data that still contain them, and accept that records of erased users are lost.\n\n"
    "Example: hotplate users erase u7 --store file:///var/lib/hotplate",
)

Users = Annotated[tuple[str, ...], Argument("Ids of users, as in events and lists.", "ID")]


@dataclass(frozen=True, slots=True)
class _LocalFolder:
    """Events on this machine, read without fsspec, which is an extra."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        _require_folder(self.path)
        return sorted(file.name for file in self.path.iterdir())

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass(frozen=True, slots=True)
class _OtherPlaces:
    """What places besides the store still hold: the users by place, and the kinds of places that were not searched."""

    users_by_place: dict[str, list[str]]
    not_searched: list[str]


@app.command()
def erase(users: Users, places: Places) -> None:
    """Erase users from a store: every service treats them as unknown within a refresh.

    Rollback, restore, copy and rebuild keep erasures. Rows are deleted from Redis and Cosmos DB at once, from drafts
    before their commit, and from files with their release. Lists the data that still contain the users, and the places
    that were not searched.

    Example: hotplate users erase u7 u8 --store redis://localhost:6379/0 --backup /backup/monday --events /var/events
    """
    from hotplate.stores.users import erase_users

    others = _search_other_places(users, places)
    erasure = run_on_store(places.store, lambda opened: erase_users(opened, users))
    _print_erasure(erasure, others, places, f"of {len(set(users))} erased from")


@app.command()
def find(users: Users, places: Places) -> None:
    """Say whether users are erased, and which releases, backups, model folders and events contain them.

    Example: hotplate users find u7 --store file:///var/lib/hotplate --model model
    """
    from hotplate.stores.users import find_users

    others = _search_other_places(users, places)
    erasure = run_on_store(places.store, lambda opened: find_users(opened, users))
    _print_erasure(erasure, others, places, f"of {len(set(users))} marked as erased in")


@app.command("accept-loss")
def accept_loss(
    store: StoreUrl = None,
    lost: Annotated[int, Flag("The number of lost users that you accept.", env=False, at_least=0)] = 0,
) -> None:
    """Accept that a store has lost records of erased users: their lists are shown and published again.

    Erase the lost ids again instead, if you know them. Without --lost, or with another number than the store has lost,
    nothing is changed: the number is printed, and the exit code is 2.

    Running services go on hiding the users they know.

    Example: hotplate users accept-loss --lost 3 --store redis://localhost:6379/0
    """
    from hotplate.stores.users import accept_loss as accept

    run_on_store(store, lambda opened: accept(opened, lost))
    facts = {"store": shown_store_url(store), "accepted": lost}
    answer = f"{shown_store_url(store)} has lost no erased user; nothing was changed"
    if lost:
        answer = f"accepted that {shown_store_url(store)} has lost {format_count(lost, 'erased user')}"
    print_result(with_warnings(facts), answer)


def _search_other_places(users: Sequence[str], places: Places) -> _OtherPlaces:
    """Return which of *users* are in backups, model folders and folders of events, and the places not searched.

    Nothing is deleted there. Raises StoreMisused for a missing folder, or a file; the caller searches before it erases
    users from the store.
    """
    for path in (*places.backups, *places.models):
        _require_folder(path)
    event_folders = [_event_folder(url) for url in places.events]
    event_files = {folder: folder.names() for folder in event_folders}

    users_by_place = {str(path): _users_in_model(path, users) for path in places.models}
    for folder, files in event_files.items():
        users_by_place[folder.shown] = _users_in_events(folder, files, users)
    for path in places.backups:
        users_by_place[str(path)] = _users_in_backup(path, users)
    return _OtherPlaces(users_by_place, _not_searched(places, chain.from_iterable(event_files.values())))


def _require_folder(path: Path) -> None:
    if path.is_file():
        raise StoreMisused(f"{path} is a file; name its folder")
    if not path.is_dir():
        raise StoreMisused(f"the folder {path} does not exist")


def _not_searched(places: Places, event_files: Iterable[str]) -> list[str]:
    """Return the kinds of places that are not searched; open segments among *event_files* are not."""
    from hotplate.stores.event_log import is_open_segment

    paths_by_kind = {"backups": places.backups, "model folders": places.models, "events": places.events}
    kinds = ["other stores", *(kind for kind, paths in paths_by_kind.items() if not paths)]
    if any(map(is_open_segment, event_files)):
        kinds.append("open segments of events")
    return kinds


def _print_erasure(erasure: "Erasure", others: _OtherPlaces, places: Places, state: str) -> None:
    """Print which users are erased from the store, and what still holds users.

    *state* ends the first sentence, as "of 2 erased from" the store.
    """
    from hotplate.stores.erasure_log import draft_sentence, lost_sentence

    facts = {
        **asdict(erasure),
        "store": shown_store_url(places.store),
        "elsewhere": others.users_by_place,
        "not_checked": others.not_searched,
    }
    sentences = [f"{format_count(len(erasure.erased), 'user')} {state} {shown_store_url(places.store)}"]
    if erasure.lost:
        sentences.append(lost_sentence(erasure.lost))
    if erasure.warning is not None:
        sentences.append(f"warning: {erasure.warning}")
    if erasure.deleted:
        sentences.append(f"{format_count(erasure.deleted, 'row')} deleted")
    elif not erasure.holding:
        sentences.append("no release holds a list of an id given: check the ids, unless they were erased before")

    for release, held in erasure.holding.items():
        list_names = erasure.lists.get(release)
        listed = f", also in the list {', '.join(list_names)}," if list_names else ""
        sentences.append(f"release {release} holds {_quoted(held)}{listed} until it is pruned")
    sentences += map(draft_sentence, erasure.being_written)
    sentences += [f"{place} holds {_quoted(held)}" for place, held in others.users_by_place.items() if held]
    sentences.append(f"not searched: {', '.join(others.not_searched)}")
    print_result(with_warnings(facts), *sentences)


def _quoted(users: Iterable[str]) -> str:
    return ", ".join(map(repr, users))


def _event_folder(url: str) -> "SegmentFolder | _LocalFolder":
    """Return a folder of events: a path of this machine, or a URL of fsspec."""
    if url_of(url) is None:
        return _LocalFolder(Path(url))
    from hotplate.serve.events.segment_folder import SegmentFolder  # an extra

    return SegmentFolder(url)


def _users_in_backup(folder: Path, users: Sequence[str]) -> list[str]:
    """Return the users that a release of a backup holds, sorted."""
    from hotplate.stores.users import find_users

    releases = run_on_store(f"file://{folder.absolute()}", lambda opened: find_users(opened, users)).holding
    return sorted({user for held in releases.values() for user in held})


def _users_in_model(folder: Path, users: Sequence[str]) -> list[str]:
    """Return the users that a model was trained on, in the given order."""
    from hotplate.offline.model_folder import load  # an extra

    known = set(load(folder).matrix.user_ids)
    return [user for user in dict.fromkeys(users) if user in known]


def _users_in_events(folder: "SegmentFolder | _LocalFolder", files: Sequence[str], users: Sequence[str]) -> list[str]:
    """Return those of *users*, in their order, that events in a folder name, or its file of consumed items.

    *files* are the names of the folder's files. Segments, files with an event in JSON on each line, are read, and the
    file of consumed items (`KEPT`), which has such lines, too. Raises WrittenByNewer.
    """
    from hotplate.serve.consumed.stored_events import KEPT
    from hotplate.stores.event_log import SegmentReader, segment_names

    wanted = set(users)
    present = set[str]()
    searched = segment_names(files)
    if KEPT in files:
        searched.append(KEPT)
    for name in searched:
        for line in SegmentReader(folder.read(name)):
            user = orjson.loads(line).get("user")
            if user in wanted:
                present.add(user)
    return [user for user in dict.fromkeys(users) if user in present]
