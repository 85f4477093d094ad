"""hotplate keeps precomputed recommendations hot: learn them offline, publish them as a release, serve them fast.

Public names are loaded on first use.
"""

TYPE_CHECKING = False  # importing `typing` is slow
if TYPE_CHECKING:  # what `_HOMES` says, for type checkers
    from hotplate.base.recommendations import Item, Recommendations
    from hotplate.base.report import Report
    from hotplate.cli.run_work import run_pipeline as run
    from hotplate.client import (
        Answer,
        AsyncClient,
        BatchTooLarge,
        Client,
        ClientClosed,
        ClientError,
        RequestRefused,
        ServiceUnavailable,
    )
    from hotplate.evaluation import EvaluateSettings, compare, evaluate
    from hotplate.offline.errors import DataError, GateFailed, ModelUnusable, SettingError
    from hotplate.offline.evaluate.splits import SplitOptions
    from hotplate.offline.exploration import Explore
    from hotplate.offline.gates.table import Gate
    from hotplate.offline.input.showings import Showings
    from hotplate.offline.lists import ListSettings
    from hotplate.offline.model import Model
    from hotplate.offline.model_folder import load as load_model
    from hotplate.offline.options import Columns, Format, PublishSettings
    from hotplate.offline.publish import Written
    from hotplate.offline.publish import publish_model as publish
    from hotplate.offline.rules import Rules
    from hotplate.offline.search.tuning import TuneOptions
    from hotplate.offline.train.als import ALSParams, SparkParams
    from hotplate.offline.train.blend import BlendParams
    from hotplate.offline.train.item_based import EASEParams, NeighbourParams
    from hotplate.offline.train.popularity import PopularityParams, Recency
    from hotplate.offline.training import TrainReport, TrainSettings, train
    from hotplate.releases import activate, copy, prune, release_log, rollback, verify
    from hotplate.serve.embedded import Lists, SyncLists, open_sync
    from hotplate.serve.embedded import open_lists as open  # noqa: A004 -- as webbrowser.open: it is always hotplate.open
    from hotplate.serve.errors import NotReady, UnknownList
    from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef
    from hotplate.stores.catalogue_record import dump as dump_catalogue
    from hotplate.stores.catalogue_record import parse as parse_catalogue
    from hotplate.stores.connect import connect
    from hotplate.stores.encoding import META
    from hotplate.stores.errors import (
        AccessDenied,
        CanaryRunning,
        CatalogueUnreadable,
        HeldBack,
        NotSent,
        PartLost,
        PartUnavailable,
        RefusedByGates,
        ReleaseConflict,
        ReleaseCorrupt,
        ReleaseNotFound,
        ReleaseWithdrawn,
        StoreClosed,
        StoreError,
        StoreFull,
        StoreMisused,
        StoreThrottled,
        StoreUnavailable,
        WrittenByNewer,
    )
    from hotplate.stores.release_log import ReleaseChange
    from hotplate.stores.store import (
        CheckCatalogue,
        Finding,
        Level,
        Observer,
        Plan,
        Reader,
        ReadResult,
        RecordChange,
        Row,
        Store,
        StoreUse,
    )

    __version__: str

__all__ = [
    "META",
    "ALSParams",
    "AccessDenied",
    "Answer",
    "AsyncClient",
    "BatchTooLarge",
    "BlendParams",
    "CanaryRunning",
    "Catalogue",
    "CatalogueUnreadable",
    "CheckCatalogue",
    "Client",
    "ClientClosed",
    "ClientError",
    "Columns",
    "DataError",
    "DraftRef",
    "EASEParams",
    "EvaluateSettings",
    "Explore",
    "Finding",
    "Format",
    "Gate",
    "GateFailed",
    "HeldBack",
    "Item",
    "Level",
    "ListSettings",
    "Lists",
    "Model",
    "ModelUnusable",
    "NeighbourParams",
    "NotReady",
    "NotSent",
    "Observer",
    "PartLost",
    "PartUnavailable",
    "Plan",
    "PopularityParams",
    "PublishSettings",
    "ReadResult",
    "Reader",
    "Recency",
    "Recommendations",
    "RecordChange",
    "RefusedByGates",
    "ReleaseChange",
    "ReleaseConflict",
    "ReleaseCorrupt",
    "ReleaseId",
    "ReleaseNotFound",
    "ReleaseRef",
    "ReleaseWithdrawn",
    "Report",
    "RequestRefused",
    "Row",
    "Rules",
    "ServiceUnavailable",
    "SettingError",
    "Showings",
    "SparkParams",
    "SplitOptions",
    "Store",
    "StoreClosed",
    "StoreError",
    "StoreFull",
    "StoreMisused",
    "StoreThrottled",
    "StoreUnavailable",
    "StoreUse",
    "SyncLists",
    "TrainReport",
    "TrainSettings",
    "TuneOptions",
    "UnknownList",
    "Written",
    "WrittenByNewer",
    "__version__",
    "activate",
    "compare",
    "connect",
    "copy",
    "dump_catalogue",
    "evaluate",
    "load_model",
    "open",
    "open_sync",
    "parse_catalogue",
    "prune",
    "publish",
    "release_log",
    "rollback",
    "run",
    "train",
    "verify",
]  # fmt: skip


# The homes of names that need the extra `offline`; others need `server`.
_OFFLINE = ("hotplate.offline.", "hotplate.cli.run_work", "hotplate.evaluation")
# The module and the name there of each public name.
_HOMES = {
    "AccessDenied": "hotplate.stores.errors:AccessDenied",
    "activate": "hotplate.releases:activate",
    "ALSParams": "hotplate.offline.train.als:ALSParams",
    "Answer": "hotplate.client:Answer",
    "AsyncClient": "hotplate.client:AsyncClient",
    "BatchTooLarge": "hotplate.client:BatchTooLarge",
    "BlendParams": "hotplate.offline.train.blend:BlendParams",
    "CanaryRunning": "hotplate.stores.errors:CanaryRunning",
    "Catalogue": "hotplate.stores.catalogue:Catalogue",
    "CatalogueUnreadable": "hotplate.stores.errors:CatalogueUnreadable",
    "CheckCatalogue": "hotplate.stores.store:CheckCatalogue",
    "Client": "hotplate.client:Client",
    "ClientClosed": "hotplate.client:ClientClosed",
    "ClientError": "hotplate.client:ClientError",
    "Columns": "hotplate.offline.options:Columns",
    "compare": "hotplate.evaluation:compare",
    "connect": "hotplate.stores.connect:connect",
    "copy": "hotplate.releases:copy",
    "DataError": "hotplate.offline.errors:DataError",
    "DraftRef": "hotplate.stores.catalogue:DraftRef",
    "dump_catalogue": "hotplate.stores.catalogue_record:dump",
    "EASEParams": "hotplate.offline.train.item_based:EASEParams",
    "evaluate": "hotplate.evaluation:evaluate",
    "EvaluateSettings": "hotplate.evaluation:EvaluateSettings",
    "Explore": "hotplate.offline.exploration:Explore",
    "Finding": "hotplate.stores.store:Finding",
    "Format": "hotplate.offline.options:Format",
    "Gate": "hotplate.offline.gates.table:Gate",
    "GateFailed": "hotplate.offline.errors:GateFailed",
    "HeldBack": "hotplate.stores.errors:HeldBack",
    "Item": "hotplate.base.recommendations:Item",
    "Level": "hotplate.stores.store:Level",
    "Lists": "hotplate.serve.embedded:Lists",
    "ListSettings": "hotplate.offline.lists:ListSettings",
    "load_model": "hotplate.offline.model_folder:load",
    "META": "hotplate.stores.encoding:META",
    "Model": "hotplate.offline.model:Model",
    "ModelUnusable": "hotplate.offline.errors:ModelUnusable",
    "NeighbourParams": "hotplate.offline.train.item_based:NeighbourParams",
    "NotReady": "hotplate.serve.errors:NotReady",
    "NotSent": "hotplate.stores.errors:NotSent",
    "Observer": "hotplate.stores.store:Observer",
    "open": "hotplate.serve.embedded:open_lists",
    "open_sync": "hotplate.serve.embedded:open_sync",
    "parse_catalogue": "hotplate.stores.catalogue_record:parse",
    "PartLost": "hotplate.stores.errors:PartLost",
    "PartUnavailable": "hotplate.stores.errors:PartUnavailable",
    "Plan": "hotplate.stores.store:Plan",
    "PopularityParams": "hotplate.offline.train.popularity:PopularityParams",
    "prune": "hotplate.releases:prune",
    "publish": "hotplate.offline.publish:publish_model",
    "PublishSettings": "hotplate.offline.options:PublishSettings",
    "Reader": "hotplate.stores.store:Reader",
    "Recency": "hotplate.offline.train.popularity:Recency",
    "Recommendations": "hotplate.base.recommendations:Recommendations",
    "RecordChange": "hotplate.stores.store:RecordChange",
    "RefusedByGates": "hotplate.stores.errors:RefusedByGates",
    "ReleaseChange": "hotplate.stores.release_log:ReleaseChange",
    "ReleaseConflict": "hotplate.stores.errors:ReleaseConflict",
    "ReleaseCorrupt": "hotplate.stores.errors:ReleaseCorrupt",
    "ReleaseId": "hotplate.stores.catalogue:ReleaseId",
    "release_log": "hotplate.releases:release_log",
    "ReleaseNotFound": "hotplate.stores.errors:ReleaseNotFound",
    "ReleaseRef": "hotplate.stores.catalogue:ReleaseRef",
    "ReleaseWithdrawn": "hotplate.stores.errors:ReleaseWithdrawn",
    "Report": "hotplate.base.report:Report",
    "RequestRefused": "hotplate.client:RequestRefused",
    "rollback": "hotplate.releases:rollback",
    "Row": "hotplate.stores.store:Row",
    "Rules": "hotplate.offline.rules:Rules",
    "run": "hotplate.cli.run_work:run_pipeline",
    "ServiceUnavailable": "hotplate.client:ServiceUnavailable",
    "SettingError": "hotplate.offline.errors:SettingError",
    "ReadResult": "hotplate.stores.store:ReadResult",
    "Showings": "hotplate.offline.input.showings:Showings",
    "SparkParams": "hotplate.offline.train.als:SparkParams",
    "SplitOptions": "hotplate.offline.evaluate.splits:SplitOptions",
    "Store": "hotplate.stores.store:Store",
    "StoreClosed": "hotplate.stores.errors:StoreClosed",
    "StoreError": "hotplate.stores.errors:StoreError",
    "StoreFull": "hotplate.stores.errors:StoreFull",
    "StoreMisused": "hotplate.stores.errors:StoreMisused",
    "StoreThrottled": "hotplate.stores.errors:StoreThrottled",
    "StoreUnavailable": "hotplate.stores.errors:StoreUnavailable",
    "StoreUse": "hotplate.stores.store:StoreUse",
    "SyncLists": "hotplate.serve.embedded:SyncLists",
    "train": "hotplate.offline.training:train",
    "TrainReport": "hotplate.offline.training:TrainReport",
    "TrainSettings": "hotplate.offline.training:TrainSettings",
    "TuneOptions": "hotplate.offline.search.tuning:TuneOptions",
    "UnknownList": "hotplate.serve.errors:UnknownList",
    "verify": "hotplate.releases:verify",
    "Written": "hotplate.offline.publish:Written",
    "WrittenByNewer": "hotplate.stores.errors:WrittenByNewer",
}


if not TYPE_CHECKING:  # type checkers see only the imports above

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 -- reading package metadata is slow

            value = version("hotplate")
        elif name not in __all__:
            raise AttributeError(f"module 'hotplate' has no attribute {name!r}")
        else:
            value = _load(name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _load(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415 -- as `typing`

    module, _, attribute = _HOMES[name].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        from hotplate.base.extras import install_hint  # noqa: PLC0415 -- as `typing`

        hint = install_hint(error, "offline" if module.startswith(_OFFLINE) else "server")
        if hint is None:  # a defect
            raise
        raise ModuleNotFoundError(f"hotplate.{name} cannot be loaded: {hint}", name=error.name) from error
