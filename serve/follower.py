"""Follows the live release: a process serves one release at a time, and switches only to one that it can read."""

import asyncio
import logging
from dataclasses import dataclass

from stores.catalogue import Catalogue, ReleaseId, ReleaseRef, follows
from stores.compression import Decode, load_decode
from stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreError
from stores.keys import META, OVERALL, POPULAR
from stores.manifest import MAX_POPULAR_BYTES, Manifest
from stores.store import Advised, Reader
from stores.throttle import Backoff
from stores.verification import load_manifest, read_present

log = logging.getLogger(__name__)

# An error of the same kind whose text changes, as one with the server's time in it does, is logged no more often.
LOG_EVERY_S = 60.0
# The first and the longest pause before a store that failed is tried again.
RETRY_S = (0.1, 5.0)


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """One release as it is served; immutable, so a request that holds one never mixes two."""

    ref: ReleaseRef
    manifest: Manifest
    popular: dict[str, bytes]
    """Popular lists by segment, decoded; `OVERALL` is always there."""

    decode: Decode
    """Decodes every other value of the release."""

    @property
    def id(self) -> ReleaseId:
        """The id that answers name."""
        return self.ref.id


class Follower:
    """Keeps `served` at the live release; lives as long as its tier.

    A store that cannot be read never un-serves what is served; `last_error` says in a sentence what is wrong meanwhile.
    """

    def __init__(self, reader: Reader) -> None:
        self.served: ServedRelease | None = None
        self.last_error: str | None = None
        self.warnings: list[str] = []
        """What in the store's set-up could harm what is served, as of the release that is followed."""
        self.attempted = asyncio.Event()
        """Set once the store has been read for the first time, with whatever outcome."""
        self.ready = asyncio.Event()
        """Set once a release is served."""
        self._reader = reader
        self._seen: Catalogue | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._logged: type[StoreError] | None = None
        self._logged_at = 0.0

    async def run(self) -> None:
        """Follow until cancelled."""
        backoff = Backoff(*RETRY_S)
        while True:
            try:
                async for catalogue in self._reader.changes():
                    await self._switch_if_newer(catalogue)
                    self.attempted.set()
                    backoff.reset()
            except StoreError as error:
                self._set_error(error)
                self.attempted.set()
            await asyncio.sleep(backoff.next_s())

    async def refresh(self) -> ServedRelease | None:
        """Read the catalogue at once, because a release was not found; callers at the same time share one read."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)
        return self.served

    async def _refresh(self) -> None:
        try:
            await self._switch_if_newer(await self._reader.catalogue())
        except StoreError as error:
            self._set_error(error)

    def _refreshed(self, _: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _switch_if_newer(self, catalogue: Catalogue) -> None:
        """Switch to what *catalogue* says is live, if it is newer; a StoreError leaves everything as it was."""
        if follows(catalogue, self._seen):
            live = catalogue.live_ref
            if live is not None and (self.served is None or self.served.ref != live):
                served = await _load(self._reader, live)
                log.info("release %s is live", live.id, extra={"release": live.id})
                self.served = served
                self.ready.set()
                await self._read_warnings()
            self._seen = catalogue
        nothing_live = ReleaseNotFound("nothing is live in this store yet; run `hotplate publish`")
        self._set_error(nothing_live if self.served is None else None)

    async def _read_warnings(self) -> None:
        if isinstance(self._reader, Advised):
            try:
                warnings = await self._reader.warnings()
            except StoreError as error:
                warnings = [f"the store's set-up cannot be read: {error}"]
            for sentence in warnings:
                if sentence not in self.warnings:
                    log.warning("%s", sentence)
            self.warnings = warnings

    def _set_error(self, error: StoreError | None) -> None:
        """Remember what is wrong, and log it where it is news."""
        text = None if error is None else str(error)
        if text == self.last_error:
            return
        self.last_error = text
        if error is None:
            self._logged = None
            log.info("the store can be read again")
            return
        now = asyncio.get_running_loop().time()
        if type(error) is not self._logged or now >= self._logged_at + LOG_EVERY_S:
            self._logged, self._logged_at = type(error), now
            log.warning("%s", text)


async def _load(reader: Reader, release: ReleaseRef) -> ServedRelease:
    """Read a release's manifest, dictionary, popular lists and sample; raises StoreError for an incomplete one."""
    manifest = await load_manifest(reader, release)
    decode = await load_decode(reader, release, manifest)
    segments = [OVERALL, *manifest.segments]
    values = await read_present(reader, release, [POPULAR + segment for segment in segments])
    popular = {segment: decode(value) for segment, value in zip(segments, values, strict=True)}
    if sum(map(len, popular.values())) > MAX_POPULAR_BYTES:
        raise ReleaseCorrupt(
            f"release {release.id} has popular lists of over {MAX_POPULAR_BYTES} bytes; it is not followed"
        )
    if not popular[OVERALL]:
        raise ReleaseCorrupt(f"release {release.id} has an empty popular list for everybody; it is not followed")
    for key, value in zip(manifest.sample, await read_present(reader, release, manifest.sample), strict=True):
        if not key.startswith(META):
            decode(value)
    return ServedRelease(release, manifest, popular, decode)
