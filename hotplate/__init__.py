"""hotplate keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast.

The public names: programs import them from here. Each is loaded when it is first used, so
`import hotplate` itself costs nothing.
"""

TYPE_CHECKING = False  # type checkers know it by name; `typing` would delay the command, and every program
if TYPE_CHECKING:
    from hotplate.cli.run import run_pipeline as run
    from hotplate.client import Answer, AsyncClient, Client, ClientError, RequestRefused, ServiceUnavailable
    from hotplate.offline.errors import DataError, GateFailed, SettingError
    from hotplate.offline.evaluate.splits import SplitOptions
    from hotplate.offline.input.columns import Columns
    from hotplate.offline.job import publish
    from hotplate.offline.lists import ListSettings
    from hotplate.offline.model import Model, to_implicit
    from hotplate.offline.model import load as load_model
    from hotplate.offline.publish import PublishSettings, Written
    from hotplate.offline.rules import Rules
    from hotplate.offline.train.als import ALSParams
    from hotplate.offline.train.ease import EASEParams
    from hotplate.offline.train.neighbours import NeighbourParams
    from hotplate.offline.train.popularity import PopularityParams, Recency
    from hotplate.offline.train.tuning import TuneOptions
    from hotplate.offline.training import TrainReport, TrainSettings, train
    from hotplate.releases import activate, copy, prune, rollback, verify
    from hotplate.serve.api.app import mount
    from hotplate.serve.embedded import Lists, Recommendations
    from hotplate.serve.embedded import open_lists as open  # noqa: A004 -- as webbrowser.open: it is always hotplate.open
    from hotplate.serve.reader import FoldInUnavailable, NotReady
    from hotplate.serve.sync_lists import SyncLists, open_sync
    from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef
    from hotplate.stores.catalogue import dump as dump_catalogue
    from hotplate.stores.catalogue import parse as parse_catalogue
    from hotplate.stores.connect import connect
    from hotplate.stores.encoding import Item
    from hotplate.stores.errors import (
        CanaryRunning,
        CatalogueUnreadable,
        PartUnavailable,
        RefusedByGates,
        ReleaseConflict,
        ReleaseCorrupt,
        ReleaseNotFound,
        StoreError,
        StoreFull,
        StoreMisused,
        StoreThrottled,
        StoreUnavailable,
    )
    from hotplate.stores.keys import META
    from hotplate.stores.store import (
        Diagnosed,
        Finding,
        Level,
        LocalReader,
        Observer,
        Plan,
        Reader,
        Row,
        Slot,
        Store,
    )

    __version__: str

__all__ = [
    "META",
    "ALSParams",
    "Answer",
    "AsyncClient",
    "CanaryRunning",
    "Catalogue",
    "CatalogueUnreadable",
    "Client",
    "ClientError",
    "Columns",
    "DataError",
    "Diagnosed",
    "DraftRef",
    "EASEParams",
    "Finding",
    "FoldInUnavailable",
    "GateFailed",
    "Item",
    "Level",
    "ListSettings",
    "Lists",
    "LocalReader",
    "Model",
    "NeighbourParams",
    "NotReady",
    "Observer",
    "PartUnavailable",
    "Plan",
    "PopularityParams",
    "PublishSettings",
    "Reader",
    "Recency",
    "Recommendations",
    "RefusedByGates",
    "ReleaseConflict",
    "ReleaseCorrupt",
    "ReleaseId",
    "ReleaseNotFound",
    "ReleaseRef",
    "RequestRefused",
    "Row",
    "Rules",
    "ServiceUnavailable",
    "SettingError",
    "Slot",
    "SplitOptions",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreMisused",
    "StoreThrottled",
    "StoreUnavailable",
    "SyncLists",
    "TrainReport",
    "TrainSettings",
    "TuneOptions",
    "Written",
    "__version__",
    "activate",
    "connect",
    "copy",
    "dump_catalogue",
    "load_model",
    "mount",
    "open",
    "open_sync",
    "parse_catalogue",
    "prune",
    "publish",
    "rollback",
    "run",
    "to_implicit",
    "train",
    "verify",
]

# The public names of each module, errors aside, and what they are called there if that differs.
_HOMES = {
    "hotplate.cli.run": "run",
    "hotplate.client": "Answer AsyncClient Client ClientError RequestRefused ServiceUnavailable",
    "hotplate.releases": "activate copy prune rollback verify",
    "hotplate.offline.errors": "DataError GateFailed SettingError",
    "hotplate.offline.evaluate.splits": "SplitOptions",
    "hotplate.offline.input.columns": "Columns",
    "hotplate.offline.job": "publish",
    "hotplate.offline.training": "TrainReport TrainSettings train",
    "hotplate.offline.lists": "ListSettings",
    "hotplate.offline.publish": "PublishSettings Written",
    "hotplate.offline.rules": "Rules",
    "hotplate.offline.train.als": "ALSParams",
    "hotplate.offline.train.ease": "EASEParams",
    "hotplate.offline.train.neighbours": "NeighbourParams",
    "hotplate.offline.train.popularity": "PopularityParams Recency",
    "hotplate.offline.train.tuning": "TuneOptions",
    "hotplate.offline.model": "Model load_model to_implicit",
    "hotplate.serve.api.app": "mount",
    "hotplate.serve.embedded": "Lists Recommendations open",
    "hotplate.serve.reader": "FoldInUnavailable NotReady",
    "hotplate.serve.sync_lists": "SyncLists open_sync",
    "hotplate.stores.catalogue": "Catalogue DraftRef ReleaseId ReleaseRef dump_catalogue parse_catalogue",
    "hotplate.stores.connect": "connect",
    "hotplate.stores.encoding": "Item",
    "hotplate.stores.keys": "META",
    "hotplate.stores.store": "Diagnosed Finding Level LocalReader Observer Plan Reader Row Slot Store",
}
_KNOWN_AS = {
    "dump_catalogue": "dump",
    "load_model": "load",
    "open": "open_lists",
    "parse_catalogue": "parse",
    "run": "run_pipeline",
}


if not TYPE_CHECKING:  # so that type checkers see the imports above, and no other names

    def __getattr__(name: str) -> object:
        """Load a public name on its first use."""
        if name not in __all__:
            raise AttributeError(f"module 'hotplate' has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 -- as `typing`

        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 -- reading package metadata is slow

            value = version("hotplate")
        else:
            home = next((module for module, names in _HOMES.items() if name in names.split()), "hotplate.stores.errors")
            try:
                value = getattr(import_module(home), _KNOWN_AS.get(name, name))
            except ModuleNotFoundError as error:
                from hotplate.stores.extras import install_command  # noqa: PLC0415 -- as above

                command = install_command("offline" if home.startswith("hotplate.offline") else "server")
                message = f"hotplate.{name} needs {error.name}, which is not installed; install it with: {command}"
                raise ModuleNotFoundError(message, name=error.name) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
