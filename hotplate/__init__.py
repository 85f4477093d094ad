"""hotplate keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast.

Public names are loaded on first use.
"""

TYPE_CHECKING = False  # importing `typing` is slow
if TYPE_CHECKING:  # also parsed by `_homes`
    from hotplate.cli.run import run_pipeline as run
    from hotplate.client import Answer, AsyncClient, Client, ClientError, RequestRefused, ServiceUnavailable
    from hotplate.offline.errors import DataError, GateFailed, SettingError
    from hotplate.offline.evaluate.splits import SplitOptions
    from hotplate.offline.input.columns import Columns
    from hotplate.offline.job import publish
    from hotplate.offline.lists import ListSettings
    from hotplate.offline.model import Model
    from hotplate.offline.model import load as load_model
    from hotplate.offline.publish import PublishSettings, Written
    from hotplate.offline.rules import Rules
    from hotplate.offline.train.als import ALSParams
    from hotplate.offline.train.item_based import EASEParams, NeighbourParams
    from hotplate.offline.train.popularity import PopularityParams, Recency
    from hotplate.offline.train.tuning import TuneOptions
    from hotplate.offline.training import TrainReport, TrainSettings, train
    from hotplate.releases import activate, copy, prune, rollback, verify
    from hotplate.serve.embedded import Lists, Recommendations, SyncLists, open_sync
    from hotplate.serve.embedded import open_lists as open  # noqa: A004 -- as webbrowser.open: it is always hotplate.open
    from hotplate.serve.reader import NotReady, UnknownList
    from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef
    from hotplate.stores.catalogue import dump as dump_catalogue
    from hotplate.stores.catalogue import parse as parse_catalogue
    from hotplate.stores.connect import connect
    from hotplate.stores.encoding import META, Item
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
        WrittenByNewer,
    )
    from hotplate.stores.store import (
        CheckCatalogue,
        Diagnosed,
        Finding,
        Level,
        LocalReader,
        Observer,
        Plan,
        Reader,
        RecordChange,
        ReplicatedReader,
        Row,
        Slot,
        Store,
    )

    __version__: str

__all__ = [
    "META", "ALSParams", "Answer", "AsyncClient", "CanaryRunning", "Catalogue", "CatalogueUnreadable",
    "CheckCatalogue", "Client", "ClientError", "Columns", "DataError", "Diagnosed", "DraftRef", "EASEParams", "Finding",
    "GateFailed", "Item", "Level", "ListSettings", "Lists", "LocalReader", "Model", "NeighbourParams", "NotReady",
    "Observer", "PartUnavailable", "Plan", "PopularityParams", "PublishSettings", "Reader", "Recency",
    "Recommendations", "RecordChange", "RefusedByGates", "ReleaseConflict", "ReleaseCorrupt", "ReleaseId",
    "ReleaseNotFound", "ReleaseRef", "ReplicatedReader", "RequestRefused", "Row", "Rules", "ServiceUnavailable",
    "SettingError", "Slot", "SplitOptions", "Store", "StoreError", "StoreFull", "StoreMisused", "StoreThrottled",
    "StoreUnavailable", "SyncLists", "TrainReport", "TrainSettings", "TuneOptions", "UnknownList", "Written",
    "WrittenByNewer", "__version__", "activate", "connect", "copy", "dump_catalogue", "load_model", "open", "open_sync",
    "parse_catalogue", "prune", "publish", "rollback", "run", "train", "verify",
]  # fmt: skip


if not TYPE_CHECKING:  # type checkers see only the imports above

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 -- reading package metadata is slow

            value = version("hotplate")
        elif name not in __all__:
            raise AttributeError(f"module 'hotplate' has no attribute {name!r}")
        else:
            value = _load(name, *_homes()[name])
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _homes() -> dict[str, tuple[str, str]]:
    """Return module and name of each public name, from the imports above."""
    import ast  # noqa: PLC0415 -- as `typing`

    tree = ast.parse(__spec__.loader.get_source(__name__))  # type: ignore[union-attr]  # of a package from source
    names = next(each for each in tree.body if isinstance(each, ast.If))
    imports = (each for each in names.body if isinstance(each, ast.ImportFrom))
    return {name.asname or name.name: (str(each.module), name.name) for each in imports for name in each.names}


def _load(name: str, home: str, there: str) -> object:
    from importlib import import_module  # noqa: PLC0415 -- as `typing`

    try:
        return getattr(import_module(home), there)
    except ModuleNotFoundError as error:
        from hotplate.stores.errors import install_command  # noqa: PLC0415 -- as `typing`

        command = install_command("offline" if home.startswith("hotplate.offline") else "server")
        message = f"hotplate.{name} needs {error.name}, which is not installed; install it with: {command}"
        raise ModuleNotFoundError(message, name=error.name) from error
