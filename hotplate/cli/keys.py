"""`hotplate keys`: create, list and revoke keys of clients."""

import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import click

from hotplate.cli.flags import Verbs
from hotplate.cli.terminal import err, json_text, out, print_result, table
from hotplate.serve.access import keys as key_file
from hotplate.serve.errors import ServiceMisused
from hotplate.stores.options import Argument, Flag

app = Verbs(
    help="Create, list and revoke keys, and limit the rate of each client.\n\n"
    "Example: hotplate keys create web --scope read --keys keys.json",
)
ClientName = Annotated[str, Argument("The client's name: letters, digits, dot, dash, underline.", "NAME")]
KeysFile = Annotated[Path, Flag("The file of keys that `hotplate serve` reads.", name="keys", metavar="FILE")]


@app.command()
def create(
    name: ClientName,
    file: KeysFile,
    scope: Annotated[
        tuple[str, ...],
        Flag(
            "What a new client may do: read lists (read), send events (events), operate (admin); repeatable.",
            metavar="SCOPE",
            prefix="KEYS_",
        ),
    ] = (),
    rate: Annotated[
        float | None, Flag("Limit a new client to this rate.", metavar="REQUESTS/S", at_least=0.001, prefix="KEYS_")
    ] = None,
) -> None:
    """Create a key for a client and print it once; the file holds its SHA-256.

    An existing client gets a second key. To rotate: create, give the client the new key, then revoke the primary. A
    running service picks up changes within two seconds.

    Example: hotplate keys create web --scope read --rate 500 --keys /etc/hotplate/keys.json
    """
    created = key_file.create(file, name, scope, rate, show=_print_key)
    if out.quiet:
        return
    err.print(f"This is the {created.kind} key of {created.client}. Keep it now: it cannot be shown again.")


def _print_key(created: key_file.CreatedKey) -> None:
    """Print a key; ServiceMisused if that fails, as it cannot be shown again."""
    reason = "there is no standard output"
    if sys.stdout is not None:
        try:
            click.echo(json_text(created) if out.quiet else created.key)
        except OSError as error:
            out.on_broken_pipe()  # drop it
            reason = error.strerror or str(error)
        else:
            return
    raise ServiceMisused(f"the key cannot be printed, and is not stored: {reason}")


@app.command("list")
def list_clients(file: KeysFile) -> None:
    """List the clients, their scopes, and the dates of their keys.

    Example: hotplate keys list --keys /etc/hotplate/keys.json
    """
    clients = key_file.load(file)
    rows = list[tuple[object, ...]]()
    for client in clients:
        dates = [time.strftime("%Y-%m-%d", time.gmtime(key.created_at)) for key in client.keys]
        dates += [""] * (2 - len(dates))  # a client may lack a secondary key
        rows.append((client.name, ", ".join(client.scopes), client.rate, *dates))

    headings = ("client", "scopes", "requests/s", "primary", "secondary")
    print_result([client.described() for client in clients], table(headings, rows))


@app.command()
def revoke(
    name: ClientName,
    file: KeysFile,
    primary: Annotated[bool, Flag("Revoke the primary key only; the secondary replaces it.", env=False)] = False,
    secondary: Annotated[bool, Flag("Revoke the secondary key only.", env=False)] = False,
) -> None:
    """Revoke one key of a client, or all without --primary and --secondary.

    A running service refuses it within two seconds.

    Example: hotplate keys revoke web --primary --keys /etc/hotplate/keys.json
    """
    kind: Literal["primary", "secondary"] | None = None
    if primary != secondary:
        kind = "primary" if primary else "secondary"
    client = key_file.revoke(file, name, kind)  # None if that was the last key

    facts = {"name": name, "revoked": kind or "all", "keys_left": 0 if client is None else len(client.digests())}
    sentences = [f"revoked {name}" if kind is None else f"revoked the {kind} key of {name}"]
    if kind is not None and client is None:
        sentences.append(f"{name} had no other key, and is removed")
    print_result(facts, *sentences)
