"""The end of a canary for all processes: watch the admin listener, and abort it once a worker has stopped using it."""

import asyncio
import logging
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import orjson

from hotplate.serve.errors import ServiceMisused
from hotplate.stores.catalogue import Release
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreUnavailable
from hotplate.stores.lifecycle import abort
from hotplate.stores.store import Store

log = logging.getLogger(__name__)

# How often a watched service is asked, and how long one request may take.
POLL_S = 2.0
TIMEOUT_S = 5.0
# How much of what a service says is kept in the catalogue.
MAX_FINDING_CHARS = 500


async def watch(store: Store, url: str, key: str | None = None, *, poll_s: float = POLL_S) -> str | None:
    """Watch until the canary has ended: return why if it was ended here, or None if others ended it.

    It is ended once a worker of the service has stopped using it. *url* is the service's admin listener. Raises
    ReleaseNotFound if there is no canary, and StoreUnavailable, ServiceMisused or OSError if the store or the service
    cannot be read at first. Later it waits until they can.
    """
    canary = (await store.catalogue()).canary_entry
    if canary is None:
        raise ReleaseNotFound("no release is the canary in this store; name the one to try")
    finding = await asyncio.to_thread(finding_on, canary, url, key)
    while True:
        try:
            if finding is not None:
                await abort(store, if_canary=canary.id, finding=finding)
                return f"release {canary.id} is not the canary any more: {finding}"
            await asyncio.sleep(poll_s)
            found = (await store.catalogue()).canary_entry
            if found is None or found.id != canary.id:
                return None
            finding = await asyncio.to_thread(finding_on, found, url, key)
        except (ReleaseNotFound, ReleaseConflict):  # others came first
            return None
        except OSError as error:
            log.warning("%s cannot be read: %s", url, error)
        except StoreUnavailable as error:
            log.warning("the canary cannot be watched, which is tried again: %s", error)
            await asyncio.sleep(poll_s)


def finding_on(canary: Release, url: str, key: str | None = None) -> str | None:
    """Return why a worker of the service does not use a canary any more; None if all do, or have not seen it yet.

    An earlier canary of the same release left service at another time.

    Raises OSError if the admin listener at *url* cannot be read, and ServiceMisused if nothing like one answers there.
    """
    if not url.startswith(("http://", "https://")):
        raise ServiceMisused(f"{url} is not the URL of an admin listener, as http://127.0.0.1:8090")
    headers = {} if key is None else {"X-API-Key": key}
    request = Request(f"{url.rstrip('/')}/readyz", headers=headers)  # noqa: S310 -- its scheme was looked at
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 -- as above
            body = response.read()
    except HTTPException as error:
        raise OSError(f"its answer is not whole: {error!r}") from error
    except HTTPError as error:
        if error.code in (401, 403):
            raise ServiceMisused(f"{url} takes the key of an operator: give it by --key") from error
        if error.code != 503:  # then it is not ready, and says of what
            raise
        body = error.read()
    try:
        tiers = [tier for worker in orjson.loads(body)["workers"] for tier in worker["tiers"]]
        stopped = [tier["canary_stopped"] for tier in tiers if "canary_stopped" in tier]
        of_it = {"release": canary.id, "incarnation": canary.incarnation, "superseded_at": canary.superseded_at}
        found = (str(each["finding"])[:MAX_FINDING_CHARS] for each in stopped if of_it.items() <= each.items())
        return next(found, None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ServiceMisused(f"what answers at {url} is not an admin listener; give its URL to --watch") from error
