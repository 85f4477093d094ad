"""Watches over a store's canary from outside: by the counters of a service, all workers together."""

import asyncio
import logging
from collections import defaultdict
from time import monotonic
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

from serve.errors import ServiceMisused
from serve.metrics import CANARY, LIVE, LOOKUP_OUTCOMES
from serve.releases.canary import WINDOW_S, Counts, worse
from stores.catalogue import ReleaseId
from stores.errors import ReleaseConflict, ReleaseNotFound
from stores.lifecycle import abort
from stores.store import Store

log = logging.getLogger(__name__)

# How often the counters are read, and how long one look may take.
POLL_S, TIMEOUT_S = 2.0, 5.0


class Scrape(NamedTuple):
    """What one look at `/metrics` says of the canary: lookups by role, and how many workers have stopped using it."""

    counts: dict[str, Counts]
    stopped: int


async def watch(store: Store, url: str, key: str | None = None, *, poll_s: float = POLL_S) -> str | None:
    """Watch until the canary has ended: return why where it was ended here, or None where others did.

    It is ended where it is `worse` over WINDOW_S, or where a worker has stopped using it. *url* is the service's admin
    listener. Raises ReleaseNotFound where there is no canary, and ServiceMisused or OSError where the first look fails;
    later ones are repeated.
    """
    canary = (await store.catalogue()).canary
    if canary is None:
        raise ReleaseNotFound("no release is the canary in this store; name the one to try")
    first, since = await asyncio.to_thread(scrape, url, key), monotonic()
    while True:
        await asyncio.sleep(poll_s)
        found = (await store.catalogue()).canary
        if found is None or found.release != canary.release:
            return None
        try:
            now = await asyncio.to_thread(scrape, url, key)
        except OSError as error:
            log.warning("%s cannot be read: %s", url, error)
            continue
        finding = _finding(first, now)
        if finding is not None:
            return await _end(store, canary.release, finding)
        if monotonic() >= since + WINDOW_S:
            first, since = now, monotonic()


def scrape(url: str, key: str | None = None) -> Scrape:
    """Read `/metrics` of the admin listener at *url*; OSError where it cannot be read."""
    if not url.startswith(("http://", "https://")):
        raise ServiceMisused(f"{url} is not the URL of an admin listener, as http://127.0.0.1:8090")
    headers = {} if key is None else {"X-API-Key": key}
    request = Request(f"{url.rstrip('/')}/metrics", headers=headers)  # noqa: S310 -- its scheme was looked at
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 -- as above
            return parse(response.read().decode())
    except HTTPError as error:
        if error.code in (401, 403):
            raise ServiceMisused(f"{url} takes the key of an operator: give it by --key") from error
        raise


def parse(text: str) -> Scrape:
    """Take what is of the canary out of Prometheus text."""
    counts: defaultdict[tuple[str, str], float] = defaultdict(float)
    stopped = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "hotplate_canary_lookups_total":
                counts[sample.labels["role"], sample.labels["outcome"]] += sample.value
            elif sample.name == "hotplate_canary_stopped":
                stopped += sample.value
    by_role = {role: Counts(*(counts[role, outcome] for outcome in LOOKUP_OUTCOMES)) for role in (LIVE, CANARY)}
    return Scrape(by_role, int(stopped))


def _finding(first: Scrape, now: Scrape) -> str | None:
    """Say why the canary is to be ended, by what was counted between two looks; None where it is not."""
    if now.stopped:
        return f"{now.stopped} workers of the service have stopped using it"

    def since(role: str) -> Counts:
        # A service that was started anew counts from 0.
        return Counts(*(max(0.0, b - a) for a, b in zip(first.counts[role], now.counts[role], strict=True)))

    return worse(since(LIVE), since(CANARY))


async def _end(store: Store, release: ReleaseId, finding: str) -> str | None:
    try:
        await abort(store, if_canary=release)
    except (ReleaseNotFound, ReleaseConflict):  # others came first
        return None
    return f"release {release} is not the canary any more: {finding}"
