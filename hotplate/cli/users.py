"""`hotplate users`: erase users, and find data that still contain them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import Json, StoreUrl, counted, print_result, shown_store, with_store
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

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
        tuple[Path, ...], Flag("A folder of events to search; repeatable.", name="events", metavar="DIR")
    ] = ()
    as_json: Json = False


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
    elsewhere = _elsewhere(users, places)  # first, because it fails for a wrong folder
    done = with_store(places.store, lambda opened: act(opened, users))
    _print(done, users, places, elsewhere, state)


def _elsewhere(users: "Sequence[str]", places: Places) -> dict[str, list[str]]:
    from hotplate.stores.errors import StoreMisused

    for path in (*places.backups, *places.models, *places.events):
        if not path.is_dir():
            raise StoreMisused(f"the folder {path} does not exist")
    return {
        **{str(path): with_store(f"file://{path.absolute()}", _users_of(users)) for path in places.backups},
        **{str(path): _in_model(path, users) for path in places.models},
        **{str(path): _in_events(path, users) for path in places.events},
    }


def _print(
    done: "Erasure", users: "Sequence[str]", places: Places, elsewhere: dict[str, list[str]], state: str
) -> None:
    named = (
        ("other stores", True),
        ("backups", not places.backups),
        ("model folders", not places.models),
        ("events", not places.events),
        ("open segments of events", any(map(_has_open_segments, places.events))),
    )
    unchecked = [name for name, is_unchecked in named if is_unchecked]
    counted_users = f"{counted(len(done.erased), 'user')} of {len(set(users))}"
    sentences = [f"{counted_users} are {state} {shown_store(places.store)}"]
    if done.deleted:
        sentences.append(f"{counted(done.deleted, 'row')} deleted")
    sentences += [
        f"release {release} holds {_named(held)} until it is pruned" for release, held in done.holding.items()
    ]
    sentences += [f"release {release} is being written, and was not searched" for release in done.being_written]
    sentences += [f"{path} holds {_named(held)}" for path, held in elsewhere.items() if held]
    sentences.append(f"not searched: {', '.join(unchecked)}")
    where = {"store": shown_store(places.store, as_json=True)}
    facts = asdict(done) | where | {"elsewhere": elsewhere, "not_checked": unchecked}
    print_result(facts, *sentences, as_json=places.as_json)


def _has_open_segments(folder: Path) -> bool:
    from hotplate.stores.event_log import is_open_segment

    return any(is_open_segment(path.name) for path in folder.iterdir())


def _users_of(users: "Sequence[str]") -> Any:  # noqa: ANN401 -- a function of a store
    async def act(opened: "Store") -> list[str]:
        from hotplate.stores.users import find_users

        held = (await find_users(opened, users)).holding
        return sorted({user for of_release in held.values() for user in of_release})

    return act


def _in_model(folder: Path, users: "Sequence[str]") -> list[str]:
    from hotplate.offline.model import load

    known = set(load(folder).matrix.user_ids)
    return [user for user in dict.fromkeys(users) if user in known]


def _in_events(folder: Path, users: "Sequence[str]") -> list[str]:
    import orjson

    from hotplate.stores.event_log import SegmentReader, segments

    wanted, found = set(users), set[str]()
    for path in segments(folder):
        for line in SegmentReader(path.read_bytes()):
            user = orjson.loads(line).get("user")
            found |= {user} & wanted
    return [user for user in dict.fromkeys(users) if user in found]


def _named(users: "Sequence[str]") -> str:
    return ", ".join(repr(user) for user in users)
