"""`hotplate lookup`: what would the service answer?"""

from typing import TYPE_CHECKING, Annotated

import typer

from hotplate.cli.terminal import Json, StoreUrl, out, print_json, table, with_store

if TYPE_CHECKING:
    from serve.lookup import Found
    from stores.store import Store


def lookup(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id, exactly as in the interactions.")],
    store: StoreUrl = None,
    n: Annotated[int, typer.Option("-n", min=1, max=1000, envvar="HOTPLATE_N", help="How many items.")] = 10,
    segment: Annotated[
        str, typer.Option(envvar="HOTPLATE_SEGMENT", help="Whose popular list, where the user has no own.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Look one user up, as the service would.

    Example: hotplate lookup 12347 -n 5
    """
    from serve.lookup import Lookup
    from serve.metrics import Metrics
    from serve.tiers import Tier
    from stores.encoding import cut, decode
    from stores.errors import ReleaseNotFound
    from stores.keys import check_id

    async def ask(opened: "Store") -> "Found":
        metrics = Metrics(1, ["store"])
        tier = Tier("store", opened, metrics)
        if await tier.follower.refresh() is None:
            raise ReleaseNotFound(tier.trouble or "nothing is live in this store; run `hotplate publish`")
        return await Lookup([tier], metrics, budget_s=10.0).personal(check_id(user), segment)

    found = with_store(store, ask)
    items = decode(cut(found.value, n))
    if as_json:
        print_json({"user": user, "release": found.view.release, "source": found.source, "items": items})
        return
    out.print(f"{user}: {found.source}, release {found.view.release}", markup=False)
    out.print(table(("item", "score", "title"), [(item["id"], item["score"], item.get("title")) for item in items]))
