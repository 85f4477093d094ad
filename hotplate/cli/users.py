"""`hotplate users`: erase users, and find data that still contain them."""

from typing import Annotated

import typer

from hotplate.cli.flags import Verbs
from hotplate.cli.options import Places

app = Verbs(
    no_args_is_help=True,
    help="Erase users, and find data that still contain them.\n\n"
    "Example: hotplate users erase u7 --store file:///var/lib/hotplate",
)

Users = Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of users, as in events and lists.")]


@app.command()
def erase(users: Users, places: Places) -> None:
    """Erase users from a store: every service treats them as unknown within a refresh.

    Rollback, restore, copy and rebuild keep erasures. Rows are deleted from Redis and Cosmos DB at once, and from files
    with their release. Lists the data that still contain the users, and the places that were not searched.

    Example: hotplate users erase u7 u8 --store redis://localhost:6379/0 --backup /backup/monday --events /var/events
    """
    from hotplate.cli import erasing

    erasing.erase(users, places)


@app.command()
def find(users: Users, places: Places) -> None:
    """Say whether users are erased, and which releases, backups, model folders and events contain them.

    Example: hotplate users find u7 --store file:///var/lib/hotplate --model model
    """
    from hotplate.cli import erasing

    erasing.find(users, places)
