"""`/v1/releases` of the admin listener: what the stores have, and changes of releases in the admin store."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import unquote

from aiohttp import web
from msgspec import Meta, Struct

from hotplate.serve.access.keys import ADMIN
from hotplate.serve.api.parameters import QueryParser
from hotplate.serve.api.router import Route, by_template
from hotplate.serve.problems import Problem, bad_parameter
from hotplate.serve.processes.operator_view import CatalogueView, StoresView, caller_of, json_of, operator_of
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.catalogue import Catalogue, ReleaseId
from hotplate.stores.change_warnings import collected_warnings, with_warnings
from hotplate.stores.connect import opened
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.lifecycle import Override, abort, activate, promote, rollback, start_canary
from hotplate.stores.release_log import ReleaseChange, log_of, signed
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted

log = logging.getLogger(__name__)

# Timeouts of catalogue reads and of changes of releases.
CATALOGUE_S = 5.0
CHANGE_S = 60.0


class _Reason(Struct, frozen=True):
    reason: str = ""


class _Rollback(_Reason, frozen=True):
    if_live: ReleaseId = ReleaseId("")  # makes the request idempotent


class _Abort(_Reason, frozen=True):
    if_canary: ReleaseId = ReleaseId("")


class _Activate(_Reason, frozen=True):
    force: Literal["false", "true"] = "false"

    @property
    def override(self) -> Override:
        """What is overridden: over HTTP, a refusal at most, never damage."""
        return Override.REFUSAL if self.force == "true" else Override.NOTHING


class _Promote(_Activate, frozen=True):
    if_canary: ReleaseId = ReleaseId("")


class _StartCanary(_Activate, frozen=True):
    percent: Annotated[str, Meta(pattern=r"^\d{1,2}(\.\d{1,9})?$")] = "0"


async def _activate(store: Store, release: ReleaseId, query: _Activate) -> ReleaseId:
    await activate(store, release, override=query.override)
    return release


async def _start_canary(store: Store, release: ReleaseId, query: _StartCanary) -> ReleaseId:
    try:
        await start_canary(store, release, float(query.percent), override=query.override)
    except StoreMisused as error:  # the share is 0, which no pattern of the parameter excludes
        raise bad_parameter(str(error)) from None
    return release


async def _promote(store: Store, _: ReleaseId, query: _Promote) -> ReleaseId:
    return await promote(store, if_canary=query.if_canary or None, override=query.override)


async def _abort(store: Store, _: ReleaseId, query: _Abort) -> ReleaseId:
    return await abort(store, if_canary=query.if_canary or None)


async def _rollback(store: Store, _: ReleaseId, query: _Rollback) -> ReleaseId:
    return await rollback(store, if_live=query.if_live or None)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of releases: the type of its parameters, what it does, and how the log says so."""

    query: type[_Reason]
    act: Callable[[Store, ReleaseId, Any], Awaitable[ReleaseId]]
    """Takes the release of the path, which may be empty; returns the release that was changed."""
    done: str


CHANGES = {
    "/v1/releases/{id}/activate": _Change(_Activate, _activate, "activated"),
    "/v1/releases/{id}/canary": _Change(_StartCanary, _start_canary, "started or changed the canary"),
    "/v1/releases/canary/promote": _Change(_Promote, _promote, "promoted the canary"),
    "/v1/releases/canary/abort": _Change(_Abort, _abort, "aborted the canary"),
    "/v1/releases/rollback": _Change(_Rollback, _rollback, "rolled back to"),
}


class ReleaseAdmin:
    """Lists and changes releases for operators."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings

    def routes(self) -> dict[str, Route]:
        """Return the routes by path."""
        routes = [Route("/v1/releases", {"GET": self.releases}, scope=ADMIN)]
        for path, change in CHANGES.items():
            query = QueryParser(change.query, f"POST {path}")
            routes.append(Route(path, {"POST": partial(self.change, change, query)}, scope=ADMIN))
        return by_template(*routes)

    async def releases(self, _request: web.BaseRequest, _raw_id: str, _raw_query: str) -> web.Response:
        """`GET /v1/releases`: the releases of each store, or why they cannot be read.

        A store is changeable if it is the admin store, which the service may write to. They are compared by their ids,
        because one store may have several URLs.
        """
        stores = tiers_of(self._settings.stores)
        reading = asyncio.gather(*map(_read_store, stores.values()))  # each the records of a store, or why not
        admin_store_id, outcomes = await asyncio.gather(self._admin_store_id(), reading)

        tiers = list[CatalogueView]()
        for (name, url), outcome in zip(stores.items(), outcomes, strict=True):
            if isinstance(outcome, _StoreRecords):
                is_changeable = outcome.catalogue.store_id == admin_store_id
                tiers.append(
                    CatalogueView.of(name, redacted(url), outcome.catalogue, outcome.log, changeable=is_changeable)
                )
            else:
                tiers.append(CatalogueView(name, redacted(url), changeable=False, error=outcome))
        return json_of(StoresView(tiers))

    async def _admin_store_id(self) -> str | None:
        """Return the id of the admin store; None if there is none, or it cannot be read."""
        if self._settings.admin_store is None:
            return None
        outcome = await _read_store(self._settings.admin_store)
        return outcome.catalogue.store_id if isinstance(outcome, _StoreRecords) else None

    async def change(
        self, change: _Change, query: QueryParser[Any], request: web.BaseRequest, raw_id: str, raw_query: str
    ) -> web.Response:
        """Change releases in the admin store, such as activate or roll back, log it, and answer with the release.

        *change* has the function that does it, and a verb for the log. *raw_id* is the release's id in the path,
        percent-encoded; it is empty for changes that find the release themselves. The answer has `warnings` if a step
        after the change failed, or a failover may lose it. Raises a Problem: 403 without an admin store, 504 after
        CHANGE_S.
        """
        parameters = query.parse(raw_query)
        if self._settings.admin_store is None:
            raise Problem(
                403,
                "no-admin-store",
                "this service may not change releases; start it with --admin-store URL, or use `hotplate releases`",
            )

        release = ReleaseId(unquote(raw_id))
        try:
            with collected_warnings(), signed(parameters.reason, caller_of(request) or operator_of(request)):
                async with opened(self._settings.admin_store) as store, asyncio.timeout(CHANGE_S):
                    changed = await change.act(store, release, parameters)
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


class _StoreRecords(NamedTuple):
    catalogue: Catalogue
    log: list[ReleaseChange]


async def _read_store(url: str) -> _StoreRecords | str:
    """Return the catalogue and the log of releases of a store, or why they cannot be read."""
    try:
        async with opened(url) as store, asyncio.timeout(CATALOGUE_S):
            return _StoreRecords(await store.catalogue(), await log_of(store))
    except (TimeoutError, StoreError) as error:
        return str(error) or f"the catalogue could not be read in {CATALOGUE_S:.0f} s"
