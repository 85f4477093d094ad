"""`hotplate users`: erase users, and find data that still contain them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import Json, StoreUrl, counted, print_result, shown_store, with_store
from hotplate.stores.options import Flag
from hotplate.stores.urls import url_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from hotplate.serve.events import SegmentFolder
    from hotplate.stores.catalogue import ReleaseId
    from hotplate.stores.store import Store
    from hotplate.stores.users import Erasure

app = Verbs(
    no_args_is_help=True,
    help="Erase users, and find data that still contain them.\n\n"
    "Example: hotplate users erase u7 --store file:///var/lib/hotplate",
)

Users = Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of users, as in events and lists.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where to search for users."""

    store: StoreUrl = None
    backups: Annotated[tuple[Path, ...], Flag("A backup to search; repeatable.", name="backup", metavar="FOLDER")] = ()
    models: Annotated[
        tuple[Path, ...], Flag("A model folder to search; repeatable.", name="model", metavar="FOLDER")
    ] = ()
    events: Annotated[
        tuple[str, ...], Flag("A folder of events to search, or its URL; repeatable.", name="events", metavar="DIR|URL")
    ] = ()
    as_json: Json = False


@dataclass(frozen=True, slots=True)
class _LocalFolder:
    """Events on this machine, read without fsspec, which is an extra."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        from hotplate.stores.errors import StoreMisused

        if not self.path.is_dir():
            raise StoreMisused(f"the folder {self.path} does not exist")
        return sorted(file.name for file in self.path.iterdir())

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@app.command()
def erase(users: Users, places: Places) -> None:
    """Erase users from a store: every service treats them as unknown within a refresh.

    Rollback, restore, copy and rebuild keep erasures. Rows are deleted from Redis and Cosmos DB at once, and from files
    with their release. Lists the data that still contain the users, and the places that were not searched.

    Example: hotplate users erase u7 u8 --store redis://localhost:6379/0 --backup /backup/monday --events /var/events
    """
    from hotplate.stores.users import erase_users

    _act(erase_users, users, places, "erased from")


@app.command()
def find(users: Users, places: Places) -> None:
    """Say whether users are erased, and which releases, backups, model folders and events contain them.

    Example: hotplate users find u7 --store file:///var/lib/hotplate --model model
    """
    from hotplate.stores.users import find_users

    _act(find_users, users, places, "marked as erased in")


def _act(
    act: "Callable[[Store, Sequence[str]], Awaitable[Erasure]]", users: "Sequence[str]", places: Places, state: str
) -> None:
    from hotplate.serve.events import SegmentFolder
    from hotplate.stores.errors import StoreMisused
    from hotplate.stores.event_log import is_open_segment
    from hotplate.stores.users import find_users

    for path in (*places.backups, *places.models):  # before anything is erased
        if not path.is_dir():
            raise StoreMisused(f"the folder {path} does not exist")
    folders = [_LocalFolder(Path(url)) if url_of(url) is None else SegmentFolder(url) for url in places.events]
    names = {folder: folder.names() for folder in folders}
    elsewhere = {str(path): _in_model(path, users) for path in places.models}
    elsewhere |= {folder.shown: _in_events(folder, names[folder], users) for folder in folders}
    for path in places.backups:
        holding = with_store(f"file://{path.absolute()}", lambda opened: find_users(opened, users)).holding
        elsewhere[str(path)] = sorted({user for of_release in holding.values() for user in of_release})
    done = with_store(places.store, lambda opened: act(opened, users))
    has_open_segments = any(is_open_segment(name) for listed in names.values() for name in listed)
    _print(done, users, places, elsewhere, state, has_open_segments=has_open_segments)


def _print(
    done: "Erasure",
    users: "Sequence[str]",
    places: Places,
    elsewhere: dict[str, list[str]],
    state: str,
    *,
    has_open_segments: bool,
) -> None:
    from hotplate.stores.erasure_log import lost_sentence

    unchecked = ["other stores"]
    given = {"backups": places.backups, "model folders": places.models, "events": places.events}
    unchecked += [name for name, paths in given.items() if not paths]
    if has_open_segments:
        unchecked.append("open segments of events")
    counted_users = f"{counted(len(done.erased), 'user')} of {len(set(users))}"
    sentences = [f"{counted_users} are {state} {shown_store(places.store)}"]
    if done.lost:
        sentences.append(lost_sentence(done.lost))
    if done.warning is not None:
        sentences.append(f"warning: {done.warning}")
    if done.deleted:
        sentences.append(f"{counted(done.deleted, 'row')} deleted")
    sentences += [
        f"release {release} holds {', '.join(map(repr, held))}{_in_lists(done, release)} until it is pruned"
        for release, held in done.holding.items()
    ]
    sentences += [f"release {release} is being written, and was not searched" for release in done.being_written]
    sentences += [f"{path} holds {', '.join(map(repr, held))}" for path, held in elsewhere.items() if held]
    sentences.append(f"not searched: {', '.join(unchecked)}")
    where = {"store": shown_store(places.store, as_json=True)}
    facts = asdict(done) | where | {"elsewhere": elsewhere, "not_checked": unchecked}
    print_result(facts, *sentences, as_json=places.as_json)


def _in_lists(done: "Erasure", release: "ReleaseId") -> str:
    names = done.lists.get(release)
    return f", also in the list {', '.join(names)}," if names else ""


def _in_model(folder: Path, users: "Sequence[str]") -> list[str]:
    from hotplate.offline.model import load

    known = set(load(folder).matrix.user_ids)
    return [user for user in dict.fromkeys(users) if user in known]


def _in_events(folder: "SegmentFolder | _LocalFolder", names: "Sequence[str]", users: "Sequence[str]") -> list[str]:
    import orjson

    from hotplate.serve.consumed import KEPT
    from hotplate.stores.event_log import SegmentReader, is_segment

    wanted = set(users)
    found = set[str]()
    for name in names:
        if not is_segment(name) and name != KEPT:
            continue
        for line in SegmentReader(folder.read(name)):
            user = orjson.loads(line).get("user")
            found |= {user} & wanted
    return [user for user in dict.fromkeys(users) if user in found]
