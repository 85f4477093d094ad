"""Preparation of new releases: local ones are read into memory, and loads of remote ones are spread over time."""

import asyncio
import logging
import random
from collections.abc import Sequence

from hotplate.base.timing import loop_time
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Reader

log = logging.getLogger(__name__)

# Processes spread the loading of a remote release over this time.
SPREAD_S = 0.5
# Maximum for reading a release into memory.
WARM_S = 120.0


async def prepare(reader: Reader, releases: Sequence[ReleaseRef], *, warm: bool, is_first: bool) -> None:
    """Prepare to serve *releases*, none of which is served yet.

    If *warm*, those of a local store are read into memory. With a remote store, this waits for a random time, at most
    SPREAD_S, so that not all processes read a new release at once, unless it *is_first* that is served here.
    """
    if reader.is_local:
        if warm:
            for release in releases:
                await _warm(reader, release)
    elif releases and not is_first:
        await asyncio.sleep(random.uniform(0, SPREAD_S))  # noqa: S311 -- not cryptographic


async def _warm(reader: Reader, release: ReleaseRef) -> None:
    """Read a release into memory, for WARM_S at most; it is served in any case."""
    started = loop_time()
    try:
        async with asyncio.timeout(WARM_S):
            await reader.warm(release)
    except TimeoutError:
        log.warning("release %s is served before all of it is in memory: %.0f s were too short", release.id, WARM_S)
    except StoreError:
        return  # loading it reports the error, without harm to the other release
    else:
        log.info("release %s was brought into memory in %.1f s", release.id, loop_time() - started)
