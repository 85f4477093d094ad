"""The store contract: what a backend must offer, as two small Protocols and the values that cross them.

Policy (publish, activate, roll back, prune, verify) is written once, in `publication`, `lifecycle` and `verification`,
over this contract. A backend moves opaque bytes, swaps one small catalogue by compare-and-set, and gives its own time.
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

# How many rows a store acknowledges together, if it keeps a list of their keys.
BATCH_ROWS = 1000

# What a read returns for one key: its value, absent, or the error with which this one could not be read.
Slot = bytes | None | StoreError


class Row(NamedTuple):
    """One key and its value; a tuple rather than a dataclass because releases hold millions of them."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What is about to be written, so a store can make room or refuse: rows, and bytes of keys and values."""

    rows: int
    payload_bytes: int
    meta_bytes: int = 0
    """How many of these are of `meta` rows, which no encoding compresses."""


class Reader(Protocol):
    """The half of the contract that serving needs; an instance lives as long as its process."""

    batch: int
    """How many keys one call should carry."""

    coalesce: int
    """How many keys of different requests one call should carry; 1 if each key is a request to the store of its own.

    Then a call with many saves nothing, and a key that is slow need not hold up those of others.
    """

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        """Read *keys* of *release*: one slot a key, in order; one slot never fails another.

        A key that UTF-8 cannot express is absent, because no row can have it.

        A store that reads key by key fills what has no answer in *timeout_s* with a StoreUnavailable of its own. Only
        lookups give one: without it a read is as patient as a write of the same store.
        Raises ReleaseNotFound if the release is gone, StoreError if nothing could be read: a PartUnavailable
        where other keys may well be readable.
        """
        ...

    async def catalogue(self) -> Catalogue:
        """Read the catalogue with the store's clock in `now`; generation 0 if nothing was ever published."""
        ...

    def changes(self) -> AsyncIterator[Catalogue]:
        """Yield the catalogue now and after each change: notified where the store can, polled if it cannot.

        May skip to the newest. Raises StoreError when the store cannot be read; call again to go on.
        """
        ...

    async def close(self) -> None:
        """Give back files and connections; closing twice does nothing."""
        ...


def not_found(release: ReleaseRef | DraftRef) -> ReleaseNotFound:
    """Return the error of a store that does not hold a release, or no longer."""
    return ReleaseNotFound(f"release {release.id} is not in this store")


def sealed(draft: DraftRef) -> ReleaseConflict:
    """Return the error of a store that is to write to a release that was sealed."""
    return ReleaseConflict(f"release {draft.id} is sealed; publish a new one")


def taken_over(draft: DraftRef) -> ReleaseConflict:
    """Return the error of a store whose draft another writer has claimed since."""
    return ReleaseConflict(f"release {draft.id} is written by another process now, which took it over")


async def read_one(reader: Reader, release: ReleaseRef, key: str) -> bytes | None:
    """Read one key; raises StoreError also if it alone could not be read."""
    (slot,) = await reader.get_many(release, [key])
    if isinstance(slot, StoreError):
        raise slot
    return slot


class LocalReader(ABC):
    """Base class of a reader in this process, whose reads are too quick to pay for a future."""

    @abstractmethod
    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        """Read one key at once.

        Raises ReleaseNotFound if the release is gone, and ReleaseCorrupt for a damaged key.
        """

    @abstractmethod
    async def warm(self, release: ReleaseRef) -> None:
        """Bring a release into memory, paced, so `get` waits for no disk; called before it is served."""


class Store(Reader, Protocol):
    """The whole contract; which publishing and operating need."""

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        """Make room for a draft and claim it for its writer. Idempotent.

        From then on, nothing that an earlier writer of the draft puts is seen by a reader. Raises StoreFull, with the
        numbers, if the plan cannot fit; ReleaseConflict if the release was sealed, or if the earlier writer is known to
        be alive. Then nothing is changed.
        """
        ...

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        """Write rows of a draft; what was acknowledged survives the writer's death. Idempotent.

        Writers that share a draft write a *part* each. Rows of a part come in ascending order of key bytes, within a
        call and from call to call; `meta` rows, which are few, may come at any time, in calls of their own. A key has
        one value: putting another may be refused. Raises ReleaseNotFound if the draft was erased, ReleaseConflict
        if the release was sealed, or another writer has claimed the draft; so do `resume_point` and `seal`.
        """
        ...

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        """Return the last key of *part*, `meta` aside, that is surely written; None before the first."""
        ...

    async def seal(self, draft: DraftRef) -> None:
        """Make every row durable and the release immutable; called once all is written, before commit.

        Idempotent: any writer may find it sealed. The event loop keeps running, because it renews the lease.
        """
        ...

    def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        """Yield every row of a sealed release, `meta` included, each once and in ascending order of key bytes.

        Works without a catalogue that can be read. Raises ReleaseNotFound for a draft.
        """
        ...

    async def prepare(self, release: ReleaseRef) -> None:
        """Make a sealed release fit to be live (warm, scaled) before the swap. Idempotent."""
        ...

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        """Replace *old* by *new*, compared by `version`; raises ReleaseConflict if another swap came first.

        Works on a full store, too. A store need not find out whether a swap whose reply was lost was made.
        """
        ...

    async def erase(self, release: ReleaseRef) -> None:
        """Remove every row of an incarnation, sealed or not, paced, to spare readers. Idempotent."""
        ...

    async def incarnations(self) -> list[str]:
        """Return the incarnations of all releases and drafts that have data in the store. Raises StoreError.

        Works without a catalogue that can be read. `prune` erases what no catalogue names any more.
        """
        ...

    async def replace_unreadable(self, record: bytes, new: Catalogue) -> None:
        """Replace *record*, as a CatalogueUnreadable names it, by *new*, and notify readers as `swap` does.

        ReleaseConflict if another record, or none, is stored by now, compared byte by byte.
        """
        ...


@dataclass(frozen=True, slots=True)
class Provisioned:
    """Throughput that is paid for by the hour, whether it is used or not."""

    what: str
    ru_s: int
    autoscale: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """What is paid for: throughput by the hour or, if a store provisions none, each request unit that is used."""

    rate_ru: float
    """What a publish may spend in a second."""

    writing: tuple[Provisioned, ...] = ()
    """By the hour, from a publish's beginning to its end."""

    afterwards: tuple[Provisioned, ...] = ()
    """By the hour, from then on: with one live release, and one that is kept."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one publish will take, in a store without other writers."""

    rows: int
    payload_bytes: int
    """Of keys and values."""

    fits: bool | None = None
    """Whether there is room; None if that cannot be known."""

    makes: tuple[str, ...] = ()
    """What is created or scaled, one sentence each."""

    request_units: Mapping[str, float] = field(default_factory=dict)
    """By what they are spent on."""

    seconds: float | None = None
    """From begin to prune, if nothing but the store's limits takes time."""

    bill: Bill | None = None
    notes: tuple[str, ...] = ()
    """What was assumed, and what could go wrong."""

    @property
    def total_ru(self) -> float:
        """Return all of them, in hundredths as they are charged."""
        return round(sum(self.request_units.values()), 2)


@dataclass(slots=True)
class PublishCounts:
    """What one publish writes and reads, counted; lives as long as its estimate."""

    sizes: Counter[int] = field(default_factory=Counter)
    """How many rows have each size that the store charges for."""

    batches: int = 0
    """How many times rows are put, at most BATCH_ROWS at once."""

    checked: int = 0
    """How many rows are read once more, to see that the release can be served."""

    erased: int = 1
    """How many releases are erased afterwards."""


class ProvisionedStore(ABC):
    """Base class of a store whose throughput is provisioned and paid for, by the hour or by each request unit."""

    @abstractmethod
    async def scale_down(self, release: ReleaseRef) -> None:
        """Let a release that is kept but not served cost as little as it can, until `prepare`. Idempotent.

        Raises ReleaseNotFound if the release is gone.
        """

    @abstractmethod
    def bill(self) -> Bill:
        """Return what a publish and its release are billed for."""

    @abstractmethod
    def typical_ru(self, plan: Plan) -> float:
        """Return the request units for publishing a release whose rows are all of the same size."""

    @abstractmethod
    async def try_catalogue(self) -> tuple[Catalogue, str]:
        """Read the catalogue by one attempt; an empty one, and why, if that fails. StoreMisused for what is refused."""

    @abstractmethod
    def row_bytes(self, row: Row) -> int:
        """Return the size that a row is charged for. Raises StoreFull for one that is too large."""

    @abstractmethod
    def estimate(self, plan: Plan, counts: PublishCounts, *, first: bool, live: bool) -> Estimate:
        """Return what publishing *plan* takes; *first*: nothing was published there before.

        Raises StoreFull for what cannot fit.
        """


class RowEraser(ABC):
    """Base class of a store that can delete single rows of a sealed release."""

    @abstractmethod
    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str]) -> int:
        """Delete rows, and return how many there were. Idempotent; raises ReleaseNotFound if the release is gone."""


class Observer(Protocol):
    """Counts the attempts of a store, with their charges and failures; given to `connect`."""

    def charged(self, ru: float) -> None:
        """Note a response, of whatever status, that was charged *ru* request units."""

    def failed(self, kind: str) -> None:
        """Note an attempt that failed, retried or not; *kind* is one of a few words of the store's own."""


Attribute = str | int | float | tuple[str, ...]


@dataclass(slots=True)
class TracedCall:
    """One call of a store that is traced: the store adds to it, and the tracer reads it."""

    headers: bytes = b""
    """The trace context as lines of a header, for stores that speak HTTP."""

    attributes: dict[str, Attribute] = field(default_factory=dict)
    """By their names in OpenTelemetry's conventions: what a store has to say, other than how long it took."""


# Few calls are traced, and only those have a TracedCall in their context.
traced_call = ContextVar[TracedCall | None]("traced_call", default=None)


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    """It works today."""

    ERROR = "error"
    """Reading or publishing fails, or will."""


class Finding(NamedTuple):
    """One line of `hotplate store doctor`: what was looked at, and a sentence, with what to do if it is not ok."""

    level: Level
    subject: str
    sentence: str


class Diagnosed(ABC):
    """Base class of a store that knows its own state: whether it is fit to be used, its data whole, a writer alive."""

    polled_at: float | None = None
    """When the catalogue was last read for `changes`, by the monotonic clock, changed or not; None if that is unknown.
    """

    @abstractmethod
    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        """Raise StoreFull, with the numbers, for what cannot fit; nothing is written."""

    async def warnings(self) -> list[str]:
        """Return one sentence for each flaw that could harm what is served, free of secrets. Raises StoreError.

        A service asks for them again and again.
        """
        return []

    async def examine(self) -> list[Finding]:
        """Look at version, rights, limits and set-up, and change nothing; free of secrets. Raises StoreError.

        For `store doctor`: it may take long. By default it says what `warnings` says.
        """
        return [Finding(Level.WARNING, "set-up", sentence) for sentence in await self.warnings()]

    async def check_size(self, release: ReleaseRef) -> None:
        """Raise ReleaseCorrupt for data that were cut; quick, and called before each release is served."""
        del release

    async def check_integrity(self, release: ReleaseRef) -> None:
        """Raise ReleaseCorrupt, saying where, for data whose bytes are not those that were sealed.

        `verify` calls it before it reads any row.
        """
        del release

    def taking_over(self, draft: DraftRef) -> AbstractAsyncContextManager[None]:
        """Let no other writer write *draft* until the block ends, in which its writer becomes the one of the catalogue.

        Raises ReleaseConflict if the writer before is known to live, as by a lock, and changes nothing then.
        """
        del draft
        return nullcontext()


async def warnings_of(reader: Reader) -> list[str]:
    """Return what a store warns of, or that this cannot be read; nothing if it is not Diagnosed."""
    try:
        return await reader.warnings() if isinstance(reader, Diagnosed) else []
    except StoreError as error:
        return [f"the store's set-up cannot be read: {error}"]
