"""`hotplate lookup`: what would the service answer?"""

from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import Json, StoreUrl, out, print_json, table, with_store
from hotplate.stores.options import Flag

if TYPE_CHECKING:
    from hotplate.serve.lists import Recommendations
    from hotplate.stores.store import Store


def lookup(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id, exactly as in the interactions.")],
    store: StoreUrl = None,
    n: Annotated[int, Flag("Show this many items.", name="-n", at_least=1, at_most=1000)] = 10,
    segment: Annotated[str, Flag("Fall back to the popular list of this segment.")] = "",
    as_json: Json = False,
) -> None:
    """Show the list that the service would answer for one user.

    Example: hotplate lookup 12347 -n 5
    """
    from hotplate.serve.lists import Lists
    from hotplate.serve.reader import TieredReader

    async def read(opened: "Store") -> "Recommendations":
        reader = TieredReader({"store": opened}, budget_s=10.0)
        await reader.tiers[0].follower.refresh()
        return await Lists(reader).personal(user, n, segment=segment)

    found = with_store(store, read)
    if as_json:
        canary = {"canary": True} if found.canary else {}
        print_json({"user": user, "release": found.release, **canary, "source": found.source, "items": found.items})
        return
    out.print(f"{user}: {found.source}, release {found.release}{', the canary' if found.canary else ''}")
    rows = [(item["id"], item["score"], item.get("title")) for item in found.items]
    out.print(table(("item", "score", "title"), rows))
