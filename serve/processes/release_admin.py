"""`/v1/releases` of the admin listener: what the stores have, and changes of releases in the admin store."""

import asyncio
import logging
from functools import partial
from typing import Annotated, ClassVar, Literal
from urllib.parse import unquote

from aiohttp import web
from msgspec import UNSET, Meta, Struct

from hotplate.serve.access.keys import ADMIN
from hotplate.serve.api.parameters import QueryParser
from hotplate.serve.api.router import Route, by_template
from hotplate.serve.problems import Problem, bad_parameter
from hotplate.serve.processes.operator_view import CatalogueView, StoresView, caller_of, json_of, operator_of
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.change_warnings import collected_warnings, with_warnings
from hotplate.stores.connect import opened
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.lifecycle import Override, abort, activate, promote, rollback, start_canary
from hotplate.stores.release_log import log_of, signed
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

log = logging.getLogger(__name__)

# Timeouts of catalogue reads and of changes of releases.
CATALOGUE_S = 5.0
CHANGE_S = 60.0
# In the place of a tier's name.
ADMIN_STORE = "admin store"


class _Change(Struct, frozen=True):
    """A change of releases, by its parameters."""

    done: ClassVar[str]
    """What it does, in the log."""

    reason: str = ""

    async def apply(self, store: Store, release: ReleaseId, /) -> ReleaseId:
        """Make the change; *release* is that of the path, perhaps empty. Return the release that was changed."""
        raise NotImplementedError


class _Rollback(_Change, frozen=True):
    done = "rolled back to"
    if_live: ReleaseId = ReleaseId("")  # makes the request idempotent

    async def apply(self, store: Store, _: ReleaseId, /) -> ReleaseId:
        return await rollback(store, if_live=self.if_live or None)


class _Abort(_Change, frozen=True):
    done = "aborted the canary"
    if_canary: ReleaseId = ReleaseId("")

    async def apply(self, store: Store, _: ReleaseId, /) -> ReleaseId:
        return await abort(store, if_canary=self.if_canary or None)


class _Activate(_Change, frozen=True):
    done = "activated"
    force: Literal["false", "true"] = "false"

    @property
    def override(self) -> Override:
        """What is overridden: over HTTP, a refusal at most, never damage."""
        return Override.REFUSAL if self.force == "true" else Override.NOTHING

    async def apply(self, store: Store, release: ReleaseId, /) -> ReleaseId:
        await activate(store, release, override=self.override)
        return release


class _Promote(_Activate, frozen=True):
    done = "promoted the canary"
    if_canary: ReleaseId = ReleaseId("")

    async def apply(self, store: Store, _: ReleaseId, /) -> ReleaseId:
        return await promote(store, if_canary=self.if_canary or None, override=self.override)


class _StartCanary(_Activate, frozen=True):
    done = "started or changed the canary"
    percent: Annotated[str, Meta(pattern=r"^\d{1,2}(\.\d{1,9})?$")] = "0"

    async def apply(self, store: Store, release: ReleaseId, /) -> ReleaseId:
        try:
            await start_canary(store, release, float(self.percent), override=self.override)
        except StoreMisused as error:  # the share is 0, which no pattern of the parameter excludes
            raise bad_parameter(str(error)) from None
        return release


CHANGES: dict[str, type[_Change]] = {
    "/v1/releases/{id}/activate": _Activate,
    "/v1/releases/{id}/canary": _StartCanary,
    "/v1/releases/canary/promote": _Promote,
    "/v1/releases/canary/abort": _Abort,
    "/v1/releases/rollback": _Rollback,
}


class ReleaseAdmin:
    """Lists and changes releases for operators."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    def routes(self) -> dict[str, Route]:
        """Return the routes by path."""
        routes = [Route("/v1/releases", {"GET": self.releases}, scope=ADMIN)]
        for path, change in CHANGES.items():
            handler = partial(self.change, QueryParser(change, f"POST {path}"))
            routes.append(Route(path, {"POST": handler}, scope=ADMIN))
        return by_template(*routes)

    async def releases(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /v1/releases`: the releases of each store, or why they cannot be read.

        A store is changeable if it is the admin store, which the service may write to. They are compared by their ids,
        because one store may have several URLs.
        """
        stores = tiers_of(self._settings.stores)
        if self._settings.admin_store is not None:
            stores[ADMIN_STORE] = self._settings.admin_store
        views = await asyncio.gather(*(_read_store(name, url) for name, url in stores.items()))
        admin = next((view for view in views if view.tier == ADMIN_STORE), None)
        tiers = [view for view in views if view is not admin]
        for view in tiers:
            view.changeable = admin is not None and admin.error is UNSET and view.store_id == admin.store_id
        return json_of(StoresView(tiers))

    async def change(
        self, parser: QueryParser[_Change], request: web.BaseRequest, raw_id: str, raw_query: str
    ) -> web.Response:
        """Change releases in the admin store, such as activate or roll back, log it, and answer with the release.

        *parser* reads the change of the route. *raw_id* is the release's id in the path, percent-encoded; it is empty
        for changes that find the release themselves. The answer has `warnings` if a step
        after the change failed, or a failover may lose it. Raises a Problem: 403 without an admin store, 504 after
        CHANGE_S.
        """
        change = parser.parse(raw_query)
        if self._settings.admin_store is None:
            raise Problem(
                403,
                "no-admin-store",
                "this service may not change releases; start it with --admin-store URL, or use `hotplate releases`",
            )

        release = ReleaseId(unquote(raw_id))
        try:
            with collected_warnings(), signed(change.reason, caller_of(request) or operator_of(request)):
                async with opened(self._settings.admin_store) as store, asyncio.timeout(CHANGE_S):
                    changed = await change.apply(store, release)
                answer = with_warnings({"release": changed})
        except TimeoutError:
            log.warning(
                "%s sent POST %s over HTTP; it was given up after %g s, and may have taken place",
                operator_of(request),
                request.rel_url.raw_path,
                CHANGE_S,
            )
            raise Problem(
                504,
                "change-timed-out",
                f"the change took more than {CHANGE_S:.0f} s and was given up, as when Cosmos DB is being scaled; "
                "GET /v1/releases shows whether it took place; if not, repeat it, or use `hotplate releases`, "
                "which waits",
            ) from None

        log.warning("%s %s, release %s, over HTTP", operator_of(request), change.done, changed)
        return json_of(answer)


async def _read_store(tier: str, url: str) -> CatalogueView:
    """Return the view of a store's catalogue and log of releases, or of why they cannot be read."""
    try:
        async with opened(url) as store, asyncio.timeout(CATALOGUE_S):
            return CatalogueView.of(tier, redacted(url), await store.catalogue(), await log_of(store))
    except (TimeoutError, StoreError) as error:
        obstacle = str(error) or f"the catalogue could not be read in {CATALOGUE_S:.0f} s"
        return CatalogueView(tier, redacted(url), error=obstacle)
