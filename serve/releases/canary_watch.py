"""Ends a store's canary for all processes as soon as a service finds it worse than the live release."""

import asyncio
import logging
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import orjson

from hotplate.serve.errors import ServiceMisused
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound
from hotplate.stores.lifecycle import abort
from hotplate.stores.store import Store

log = logging.getLogger(__name__)

# How often the service is asked, and how long one request may take.
POLL_S, TIMEOUT_S = 2.0, 5.0


async def watch(store: Store, url: str, key: str | None = None, *, poll_s: float = POLL_S) -> str | None:
    """Watch until the canary has ended: return why if it was ended here, or None if others ended it.

    It is ended once a worker of the service has stopped using it. *url* is the service's admin listener. Raises
    ReleaseNotFound if there is no canary, and ServiceMisused or OSError if the first request fails; later ones are
    repeated.
    """
    canary = (await store.catalogue()).canary
    if canary is None:
        raise ReleaseNotFound("no release is the canary in this store; name the one to try")
    finding = await asyncio.to_thread(finding_on, canary.release, url, key)
    while finding is None:
        await asyncio.sleep(poll_s)
        found = (await store.catalogue()).canary
        if found is None or found.release != canary.release:
            return None
        try:
            finding = await asyncio.to_thread(finding_on, canary.release, url, key)
        except OSError as error:
            log.warning("%s cannot be read: %s", url, error)
    try:
        await abort(store, if_canary=canary.release)
    except (ReleaseNotFound, ReleaseConflict):  # others came first
        return None
    return f"release {canary.release} is not the canary any more: {finding}"


def finding_on(canary: ReleaseId, url: str, key: str | None = None) -> str | None:
    """Return why a worker of the service does not use a canary any more; None if all do, or have not seen it yet.

    Raises OSError if the admin listener at *url* cannot be read, and ServiceMisused if nothing like one answers there.
    """
    if not url.startswith(("http://", "https://")):
        raise ServiceMisused(f"{url} is not the URL of an admin listener, as http://127.0.0.1:8090")
    headers = {} if key is None else {"X-API-Key": key}
    request = Request(f"{url.rstrip('/')}/readyz", headers=headers)  # noqa: S310 -- its scheme was looked at
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 -- as above
            body = response.read()
    except HTTPError as error:
        if error.code in (401, 403):
            raise ServiceMisused(f"{url} takes the key of an operator: give it by --key") from error
        if error.code != 503:  # then it is not ready, and says of what
            raise
        body = error.read()
    try:
        tiers = [tier for worker in orjson.loads(body)["workers"] for tier in worker["tiers"]]
        stopped = [tier["canary_stopped"] for tier in tiers if "canary_stopped" in tier]
        return next((each["finding"] for each in stopped if each["release"] == canary), None)
    except (KeyError, TypeError, ValueError) as error:
        raise ServiceMisused(f"what answers at {url} is not an admin listener; give its URL to --watch") from error
