"""The store contract: the Protocols of a backend and the values that they exchange.

A backend stores opaque bytes, swaps one small catalogue by compare-and-set, and has a clock; `publication`, `lifecycle`
and `verification` hold the policy, once for all stores.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError

# Rows that a store acknowledges together, if it keeps a list of their keys.
BATCH_ROWS = 1000

# The result of a read of one key: its value, None if absent, or an error.
Slot = bytes | None | StoreError


class Row(NamedTuple):
    """One key and its value; a tuple because releases hold millions of them."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Number of rows, and bytes of keys and values, of a publish."""

    rows: int
    payload_bytes: int
    meta_bytes: int = 0
    """Part of these that is in `meta` rows, which are not compressed."""


class Reader(Protocol):
    """The part of the contract that serving needs; an instance must not be shared by processes."""

    batch: int
    """Keys that one call should carry."""

    coalesce: int
    """Keys of different requests that one call should carry; 1 if each key is a separate request to the store."""

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        """Read *keys*: one slot per key, in order. A key that cannot be encoded as UTF-8 is absent.

        A store that reads key by key puts StoreUnavailable into slots without an answer after *timeout_s*, by default
        the patience of a write. Raises ReleaseNotFound if the release is gone, PartUnavailable if other keys may be
        readable, another StoreError if none is.
        """
        ...

    async def catalogue(self) -> Catalogue:
        """Read the catalogue with the store's clock in `now`; generation 0 if nothing was ever published."""
        ...

    def changes(self) -> AsyncIterator[Catalogue]:
        """Yield the catalogue now and after each change, by notification or polling; may skip to the newest.

        Can be called again after a StoreError.
        """
        ...

    async def close(self) -> None:
        """Close files and connections. Idempotent."""
        ...


def not_found(release: ReleaseRef | DraftRef) -> ReleaseNotFound:
    """Return the error for a release that the store does not hold."""
    return ReleaseNotFound(f"release {release.id} is not in this store")


def sealed(draft: DraftRef) -> ReleaseConflict:
    """Return the error for a write to a sealed release."""
    return ReleaseConflict(f"release {draft.id} is sealed; publish a new one")


def taken_over(draft: DraftRef) -> ReleaseConflict:
    """Return the error for a draft that another writer has claimed."""
    return ReleaseConflict(f"release {draft.id} is written by another process now, which took it over")


async def read_one(reader: Reader, release: ReleaseRef, key: str) -> bytes | None:
    """Read one key; raises StoreError if it cannot be read."""
    (slot,) = await reader.get_many(release, [key])
    if isinstance(slot, StoreError):
        raise slot
    return slot


class LocalReader(ABC):
    """A store in this process, with reads that take less time than a future costs."""

    @abstractmethod
    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        """Read one key. Raises ReleaseNotFound if the release is gone, ReleaseCorrupt for a damaged row."""

    @abstractmethod
    async def warm(self, release: ReleaseRef) -> None:
        """Load a release into memory, paced, before it is served: `get` must not wait for a disk."""


class Store(Reader, Protocol):
    """The whole contract, for publishing and operating."""

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        """Make room for a draft and claim it for its writer. Idempotent.

        Readers see nothing that an earlier writer puts afterwards. Without changing anything, raises StoreFull, with
        the numbers; ReleaseConflict if the release is sealed, or the earlier writer is known to be alive.
        """
        ...

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        """Write rows of a draft; acknowledged rows survive the writer's death. Idempotent.

        Each writer has a *part*. Its rows arrive in ascending order of key bytes, `meta` rows at any time in separate
        calls. A second value of a key may be refused. Raises ReleaseNotFound if the draft was erased, ReleaseConflict
        if it was sealed or claimed by another writer; so do `resume_point` and `seal`.
        """
        ...

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        """Return the last key of *part*, `meta` aside, known to be written; None if there is none."""
        ...

    async def seal(self, draft: DraftRef) -> None:
        """Make all rows durable and the release immutable, before its commit. Idempotent, for any writer.

        Must not block the event loop, which renews the lease.
        """
        ...

    def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        """Yield every row of a sealed release, `meta` included, once, in ascending order of key bytes.

        Works without a readable catalogue. Raises ReleaseNotFound for a draft.
        """
        ...

    async def prepare(self, release: ReleaseRef) -> None:
        """Make a sealed release ready to be live (warm, scaled). Idempotent."""
        ...

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """Replace *old* by *new*, compared by `version`; ReleaseConflict if another swap came first.

        Works on a full store. The caller settles whether a swap was made if its reply was lost.
        """
        ...

    async def erase(self, release: ReleaseRef) -> None:
        """Remove every row of an incarnation, sealed or not, paced to spare readers. Idempotent."""
        ...

    async def incarnations(self) -> list[str]:
        """Return the incarnations with data in the store; works without a readable catalogue."""
        ...

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        """Replace *record*, the `record` of a CatalogueUnreadable, by *new*, and notify readers as `swap` does.

        Raises ReleaseConflict if the stored bytes differ.
        """
        ...


@dataclass(frozen=True, slots=True)
class Provisioned:
    """Throughput paid by the hour."""

    what: str
    ru_s: int
    autoscale: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """Costs: throughput by the hour, during a publish and afterwards, or else by request unit.

    *rate_ru* is the number of request units per second that a publish may use. *afterwards* is for one live release and
    one that is kept.
    """

    rate_ru: float
    writing: tuple[Provisioned, ...] = ()
    afterwards: tuple[Provisioned, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """Needs of one publish, in a store without other writers.

    *fits* is None if unknown; *makes* are sentences about resources to create or scale; *request_units* are by purpose;
    *seconds* are from begin to prune, limited only by the store; *notes* name assumptions and risks.
    """

    rows: int
    payload_bytes: int
    fits: bool | None = None
    makes: tuple[str, ...] = ()
    request_units: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    bill: Bill | None = None
    notes: tuple[str, ...] = ()

    @property
    def total_ru(self) -> float:
        """The sum, rounded to hundredths as charges are."""
        return round(sum(self.request_units.values()), 2)


@dataclass(slots=True)
class PublishCounts:
    """Operations of one publish: rows by charged size, puts of BATCH_ROWS, rows read again, releases erased later."""

    sizes: Counter[int] = field(default_factory=Counter)
    batches: int = 0
    checked: int = 0
    erased: int = 1


class ProvisionedStore(ABC):
    """A store with throughput that is paid by the hour or by request unit."""

    @abstractmethod
    async def scale_down(self, release: ReleaseRef) -> None:
        """Reduce the cost of a release that is not served, until `prepare`. Idempotent; raises ReleaseNotFound."""

    @abstractmethod
    def bill(self) -> Bill:
        """Return the costs of a publish and its release."""

    @abstractmethod
    def typical_ru(self, plan: Plan) -> float:
        """Return the request units of publishing rows of equal size."""

    @abstractmethod
    async def try_catalogue(self) -> tuple[Catalogue, str]:
        """Read the catalogue in one attempt; if that fails, return an empty one and the reason. Raises StoreMisused."""

    @abstractmethod
    def row_bytes(self, row: Row) -> int:
        """Return the charged size of a row. Raises StoreFull if it is too large."""

    @abstractmethod
    def estimate(self, plan: Plan, counts: PublishCounts, *, first: bool, live: bool) -> Estimate:
        """Return the needs of publishing *plan*, *first* into an empty store. Raises StoreFull if it cannot fit."""


class RowEraser(ABC):
    """A store that can delete rows of a sealed release."""

    @abstractmethod
    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        """Delete rows and return their number. Idempotent; raises ReleaseNotFound if the release is gone."""


class Observer(Protocol):
    """Counts the requests of a store; passed to `connect`."""

    def charged(self, ru: float) -> None:
        """Count a response, of any status, with its charge in request units."""

    def failed(self, kind: str) -> None:
        """Count a failed attempt, retried or not; *kind* is one of a few words defined by the store."""


Attribute = str | int | float | tuple[str, ...]


@dataclass(slots=True)
class TracedCall:
    """A traced call: the context as HTTP header lines, and attributes by OpenTelemetry's names, added by the store."""

    headers: bytes = b""
    attributes: dict[str, Attribute] = field(default_factory=dict)


# Set for the few calls that are traced.
traced_call = ContextVar[TracedCall | None]("traced_call", default=None)


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    """The store works, but needs attention."""

    ERROR = "error"
    """Reading or publishing fails, or will fail."""


class Finding(NamedTuple):
    """One line of `hotplate store doctor`: a subject, and a sentence that says what to do unless it is OK."""

    level: Level
    subject: str
    sentence: str


class Diagnosed(ABC):
    """A store that can examine itself."""

    polled_at: float | None = None
    """Monotonic time at which `changes` last read the catalogue; None if unknown."""

    @abstractmethod
    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        """Raise StoreFull, with the numbers, if the plan cannot fit; nothing is written."""

    async def warnings(self) -> list[str]:
        """Return one sentence, without secrets, for each flaw that could affect serving. Raises StoreError."""
        return []

    async def examine(self) -> list[Finding]:
        """Check version, rights, limits and set-up without changes, for `store doctor`. Raises StoreError."""
        return [Finding(Level.WARNING, "set-up", sentence) for sentence in await self.warnings()]

    async def check_size(self, release: ReleaseRef) -> None:
        """Raise ReleaseCorrupt if data were cut; quick, and called before each release is served."""
        del release

    async def check_integrity(self, release: ReleaseRef) -> None:
        """Raise ReleaseCorrupt, with the place, if bytes changed after the release was sealed; called by `verify`."""
        del release

    def taking_over(self, draft: DraftRef) -> AbstractAsyncContextManager[None]:
        """Keep other writers from *draft* during the block, which makes its writer the one in the catalogue.

        Raises ReleaseConflict if the earlier writer is known to be alive, as by a lock.
        """
        del draft
        return nullcontext()


async def warnings_of(reader: Reader) -> list[str]:
    """Return a store's warnings, or that they cannot be read; nothing if it is not Diagnosed."""
    try:
        return await reader.warnings() if isinstance(reader, Diagnosed) else []
    except StoreError as error:
        return [f"the store's set-up cannot be read: {error}"]
