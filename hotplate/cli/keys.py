"""`hotplate keys`: create, list and revoke the keys of the service."""

import time
from pathlib import Path
from typing import Annotated

import typer

from hotplate.cli.options import Verbs
from hotplate.cli.terminal import Json, err, out, print_json, print_result, table
from hotplate.stores.options import Flag

app = Verbs(
    no_args_is_help=True,
    help="Create, list and revoke keys, and limit the rate of each client.\n\n"
    "Example: hotplate keys create web --scope read --keys keys.json",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The client's name: letters, digits, dot, dash, underline.")]
KeysFile = Annotated[Path, Flag("The file of keys that `hotplate serve` reads.", metavar="FILE")]


@app.command()
def create(
    name: Name,
    keys: KeysFile,
    scope: Annotated[
        list[str] | None,
        Flag(
            "What a new client may do: read, events or admin; may be given several times.",
            metavar="SCOPE",
            prefix="KEYS_",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        Flag(
            "How many requests a second a new client may send; by default as many as it likes.",
            metavar="N",
            at_least=0.001,
            prefix="KEYS_",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key for a client and print it: only this once, because the file holds its SHA-256.

    A client that exists gets a second key. To rotate: create, give the client the new key, then revoke the primary. A
    running service takes a change up within two seconds.

    Example: hotplate keys create web --scope read --rate 500 --keys /etc/hotplate/keys.json
    """
    from hotplate.serve.access.keys import create as create_key

    made = create_key(keys, name, scope or [], rate)
    if as_json:
        print_json(made)
        return
    out.print(made.key)
    err.print(f"This is the {made.kind} key of {made.client}. Keep it now: it cannot be shown again.")


@app.command("list")
def list_clients(keys: KeysFile, as_json: Json = False) -> None:
    """List the clients, what they may do, and when their keys were made; the keys themselves are not there to show.

    Example: hotplate keys list --keys /etc/hotplate/keys.json
    """
    from hotplate.serve.access.keys import StoredKey, load

    def day(key: StoredKey | None) -> str:
        return "" if key is None else time.strftime("%Y-%m-%d", time.gmtime(key.created_at))

    clients = load(keys)
    fields = [
        {
            "name": client.name,
            "scopes": client.scopes,
            "rate": client.rate,
            "primary_created_at": client.primary and client.primary.created_at,
            "secondary_created_at": client.secondary and client.secondary.created_at,
        }
        for client in clients
    ]
    rows = [
        (client.name, ", ".join(client.scopes), client.rate, day(client.primary), day(client.secondary))
        for client in clients
    ]
    print_result(fields, table(("client", "scopes", "requests/s", "primary", "secondary"), rows), as_json=as_json)


@app.command()
def revoke(
    name: Name,
    keys: KeysFile,
    primary: Annotated[bool, Flag("Revoke the primary key only; the secondary becomes it.", env=False)] = False,
    secondary: Annotated[bool, Flag("Revoke the secondary key only.", env=False)] = False,
    as_json: Json = False,
) -> None:
    """Take back one key of a client, or, without --primary and --secondary, all that it has.

    A running service refuses it within two seconds.

    Example: hotplate keys revoke web --primary --keys /etc/hotplate/keys.json
    """
    from hotplate.serve.access.keys import revoke as revoke_key

    kinds = {"primary": primary, "secondary": secondary}
    kind = None if primary == secondary else next(kind for kind, chosen in kinds.items() if chosen)
    left = revoke_key(keys, name, kind)
    fields = {"name": name, "revoked": kind or "all", "keys_left": 0 if left is None else len(left.digests())}
    gone = [f"{name} had no other, and is gone"] if left is None and kind else []
    print_result(fields, f"revoked the {kind} key of {name}" if kind else f"revoked {name}", *gone, as_json=as_json)
