"""`hotplate releases verify` and `diff`: looking into releases, changing nothing."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotplate.cli.opening import with_store
from hotplate.cli.terminal import Json, StoreUrl, err, out, print_json, table

if TYPE_CHECKING:
    from stores.catalogue import ReleaseRef
    from stores.manifest import Manifest
    from stores.store import Store
    from stores.verification import Difference

ChosenRelease = Annotated[
    str | None, typer.Argument(metavar="[RELEASE]", help="By default the live release.", show_default=False)
]


def verify(
    release: ChosenRelease = None,
    store: StoreUrl = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, envvar="HOTPLATE_SAMPLE", help="Read so many random users' lists and open them, only."),
    ] = None,
    whole: Annotated[bool, typer.Option("--all", help="Read every row and add up; the default.")] = False,
    as_json: Json = False,
) -> None:
    """Read every row of a release and check counts, bytes and digest against its manifest.

    With --sample, read the manifest, the popular lists and some users' lists as the service would, and open them. What
    the store warns of is printed, too.

    Example: hotplate releases verify --store redis://localhost:6379/0 --sample 1000
    """
    from stores.store import Advised
    from stores.verification import sample as look
    from stores.verification import verify as check

    if whole and sample is not None:
        raise typer.BadParameter("give --all or --sample, not both")

    async def read(opened: "Store") -> "tuple[Manifest, str, list[str]]":
        chosen = await choose(opened, release)
        warnings = await opened.warnings() if isinstance(opened, Advised) else []
        if sample is None:
            manifest = await check(opened, chosen)
            rows = sum(manifest.counts.values())
            return manifest, f"is whole: {rows:,} rows, {manifest.bytes:,} bytes", warnings
        seen = await look(opened, chosen, sample)
        return seen.manifest, f"can be read: {seen.users:,} users' lists, {seen.popular:,} popular ones", warnings

    manifest, finding, warnings = with_store(store, read)
    if as_json:
        print_json({"release": manifest, "sampled": sample, "warnings": warnings})
        return
    out.print(f"{manifest.release} {finding}", markup=False)
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False)


def diff(
    first: Annotated[str, typer.Argument(metavar="FIRST", help="An id, as `hotplate releases list` shows it.")],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="The id to compare it with.")],
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Compare two releases: whose lists, how much of each user's first ten items, how much goes to few items.

    Example: hotplate releases diff 20261120T064200Z-7f3a 20261121T064200Z-09c1
    """
    from stores.catalogue import ReleaseId
    from stores.verification import diff as compare

    async def read(opened: "Store") -> "Difference":
        found = await opened.catalogue()
        return await compare(opened, found.find(ReleaseId(first)).ref, found.find(ReleaseId(second)).ref)

    found = with_store(store, read)
    facts = _facts(found, first, second)
    if as_json:
        print_json(facts)
        return
    share = [
        (f"share of the {count} most recommended items", *(f"{shares[count]:.1%}" for shares in found.popular_share))
        for count in found.popular_share[0]
    ]
    out.print(table(("", first, second), [("users in this one only", found.only_first, found.only_second), *share]))
    out.print(f"{found.compared:,} users in both, {found.unchanged:,} with the same first items in the same order")
    if found.overlap is not None:
        out.print(f"overlap@10: {found.overlap:.4f} of the items, on average")


def _facts(found: "Difference", first: str, second: str) -> dict[str, Any]:
    return {
        "compared": found.compared,
        "unchanged": found.unchanged,
        "overlap_at_10": found.overlap,
        "releases": [
            {
                "release": release,
                "users_only_here": only,
                "popular_share": {str(n): round(x, 6) for n, x in share.items()},
            }
            for release, only, share in zip(
                (first, second), (found.only_first, found.only_second), found.popular_share, strict=True
            )
        ],
    }


async def choose(store: "Store", release: str | None) -> "ReleaseRef":
    """Return the release that was named, which must be there, or the live one."""
    from stores.catalogue import ReleaseId
    from stores.errors import ReleaseNotFound

    found = await store.catalogue()
    chosen = ReleaseId(release) if release is not None else found.live
    if chosen is None:
        raise ReleaseNotFound("nothing is live in this store; name a release, or publish one")
    return found.find(chosen).ref


def tell_one(fields: object, sentence: str, *, as_json: bool) -> None:
    """Print the outcome of a verb, for people or as JSON."""
    if as_json:
        print_json(fields)
    else:
        out.print(sentence, markup=False)
