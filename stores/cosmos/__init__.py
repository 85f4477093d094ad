"""The Cosmos DB store: a container a release, an item a row, every request unit counted."""

from typing import TYPE_CHECKING

from stores.errors import StoreMisused

if TYPE_CHECKING:
    from stores.cosmos.store import CosmosStore
    from stores.store import Observer


def open_url(url: str, observer: "Observer | None" = None) -> "CosmosStore":
    """Open `cosmos://ACCOUNT/DATABASE` or `cosmos+http(s)://HOST:PORT/DATABASE`; options: `stores.cosmos.url`.

    Raises StoreMisused for a malformed URL, and where the extra is not installed.
    """
    try:
        from stores.cosmos.store import open_store  # noqa: PLC0415 -- an extra, named below where it is missing

        return open_store(url, observer)
    except ModuleNotFoundError as error:
        raise StoreMisused(f"{error.name} is not installed; install it with: pip install 'hotplate[cosmos]'") from error
