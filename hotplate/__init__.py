"""hotplate keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast.

The public names: whoever uses hotplate as a library imports them from here. Each is loaded when it is first used, so
that `import hotplate` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.app import mount
    from serve.reader import Lists, NotReady, Recommendations
    from serve.reader import open_lists as open  # noqa: A004 -- as webbrowser.open: it is always hotplate.open
    from stores.connect import connect
    from stores.encoding import Item
    from stores.errors import (
        CatalogueUnreadable,
        PartUnavailable,
        ReleaseConflict,
        ReleaseCorrupt,
        ReleaseNotFound,
        StoreError,
        StoreFull,
        StoreMisused,
        StoreThrottled,
        StoreUnavailable,
    )

    __version__: str

__all__ = [
    "CatalogueUnreadable",
    "Item",
    "Lists",
    "NotReady",
    "PartUnavailable",
    "Recommendations",
    "ReleaseConflict",
    "ReleaseCorrupt",
    "ReleaseNotFound",
    "StoreError",
    "StoreFull",
    "StoreMisused",
    "StoreThrottled",
    "StoreUnavailable",
    "__version__",
    "connect",
    "mount",
    "open",
]

# Where a public name lives, and what it is called there where that differs; all others are in `stores.errors`.
_HOMES = {
    "Item": ("stores.encoding", "Item"),
    "Lists": ("serve.reader", "Lists"),
    "NotReady": ("serve.reader", "NotReady"),
    "Recommendations": ("serve.reader", "Recommendations"),
    "connect": ("stores.connect", "connect"),
    "mount": ("serve.app", "mount"),
    "open": ("serve.reader", "open_lists"),
}


if not TYPE_CHECKING:  # so that type checkers see the imports above, and no other names

    def __getattr__(name: str) -> object:
        """Load a public name on its first use."""
        if name not in __all__:
            raise AttributeError(f"module 'hotplate' has no attribute {name!r}")
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 -- reading package metadata is slow

            value = version("hotplate")
        else:
            module, known_as = _HOMES.get(name, ("stores.errors", name))
            value = getattr(import_module(module), known_as)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
