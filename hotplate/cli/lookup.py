"""`hotplate lookup`: what would the service answer?"""

from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import Json, StoreUrl, out, print_json, table, with_store

if TYPE_CHECKING:
    from serve.reader import Recommendations
    from stores.store import Store


def lookup(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id, exactly as in the interactions.")],
    store: StoreUrl = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, envvar="HOTPLATE_N", help="How many items to show.")] = 10,
    segment: Annotated[
        str,
        typer.Option(envvar="HOTPLATE_SEGMENT", help="The segment whose popular list a user without a list gets."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Show the list that the service would answer for one user.

    Example: hotplate lookup 12347 -n 5
    """
    from serve.reader import Lists, TieredReader

    async def read(opened: "Store") -> "Recommendations":
        reader = TieredReader({"store": opened}, budget_s=10.0)
        await reader.tiers[0].follower.refresh()
        return await Lists(reader).personal(user, n, segment=segment)

    found = with_store(store, read)
    if as_json:
        print_json({"user": user, "release": found.release, "source": found.source, "items": found.items})
        return
    out.print(f"{user}: {found.source}, release {found.release}", markup=False)
    out.print(
        table(("item", "score", "title"), [(item["id"], item["score"], item.get("title")) for item in found.items])
    )
