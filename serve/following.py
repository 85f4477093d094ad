"""Following the live release: a process serves one release at a time, and changes over only to one that it can read."""

import asyncio
import logging
import random
from dataclasses import dataclass

from stores.catalogue import Catalogue, ReleaseId, ReleaseRef, follows
from stores.compression import Decode, load_decode
from stores.errors import ReleaseCorrupt, StoreError
from stores.keys import META, OVERALL, POPULAR
from stores.manifest import MAX_POPULAR_BYTES, Manifest
from stores.store import Advised, Reader
from stores.verification import load_manifest, read_present

log = logging.getLogger(__name__)

RETRY_S = (0.1, 5.0)
"""The first and the longest pause before a store that failed is asked again."""


@dataclass(frozen=True, slots=True)
class View:
    """One release as it is served; immutable, so a request that holds one never mixes two."""

    ref: ReleaseRef
    manifest: Manifest
    popular: dict[str, bytes]
    """Popular lists by segment, decoded; `OVERALL` is always there."""

    decode: Decode
    """Opens every other value of the release."""

    @property
    def release(self) -> ReleaseId:
        """The id that answers name."""
        return self.ref.id


class Follower:
    """Keeps `view` at the live release; lives as long as the service.

    What cannot be read never un-serves what is served: `trouble` says, in a sentence, what is wrong meanwhile.
    """

    def __init__(self, reader: Reader) -> None:
        self.view: View | None = None
        self.trouble: str | None = None
        self.advice: list[str] = []
        """What the store's set-up could do to what is served, as of the release that is followed."""
        self.looked = asyncio.Event()
        """Set once the store has been asked for the first time, with whatever outcome."""
        self._reader = reader
        self._seen: Catalogue | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        pause_s = RETRY_S[0]
        while True:
            try:
                async for found in self._reader.changes():
                    await self._consider(found)
                    self.looked.set()
                    pause_s = RETRY_S[0]
            except StoreError as error:
                self._note(str(error))
                self.looked.set()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads workers, guards nothing
            pause_s = min(pause_s * 2, RETRY_S[1])

    async def refresh(self) -> View | None:
        """Look at once, because a read found its release gone; callers at the same time share one look."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._look())
            self._refreshing.add_done_callback(self._looked)
        await asyncio.shield(self._refreshing)
        return self.view

    async def _look(self) -> None:
        try:
            await self._consider(await self._reader.catalogue())
        except StoreError as error:
            self._note(str(error))

    def _looked(self, _: asyncio.Task[None]) -> None:
        self._refreshing = None

    async def _consider(self, found: Catalogue) -> None:
        """Change over to what *found* says is live, if that is news; a StoreError leaves everything as it was."""
        if follows(found, self._seen):
            live = found.live_ref
            if live is not None and (self.view is None or self.view.ref != live):
                view = await _load(self._reader, live)
                log.info("release %s is live", live.id, extra={"release": live.id})
                self.view = view
                await self._take_advice()
            self._seen = found
        self._note(None if self.view is not None else "nothing is live in this store yet; run `hotplate publish`")

    async def _take_advice(self) -> None:
        if isinstance(self._reader, Advised):
            try:
                advice = await self._reader.warnings()
            except StoreError as error:
                advice = [f"the store's set-up cannot be looked at: {error}"]
            for sentence in advice:
                if sentence not in self.advice:
                    log.warning("%s", sentence)
            self.advice = advice

    def _note(self, trouble: str | None) -> None:
        if trouble != self.trouble:
            if trouble is not None:
                log.warning("%s", trouble)
            elif self.trouble is not None:
                log.info("the store is well again")
            self.trouble = trouble


async def _load(reader: Reader, release: ReleaseRef) -> View:
    """Read a release's manifest, dictionary, popular lists and sample; raises StoreError for one that is not whole."""
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
    return View(release, manifest, popular, decode)
