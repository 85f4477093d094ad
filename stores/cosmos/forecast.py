"""What a publish into Cosmos DB will make, spend, take and be billed for; nothing is written to find out."""

from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

from stores import catalogue as changes
from stores.catalogue import GRACE_S, Catalogue, ReleaseId, State
from stores.cosmos.charges import Charges
from stores.cosmos.foretold import makes, notes
from stores.cosmos.items import SYSTEM_BYTES
from stores.cosmos.rehearsal import Ledger, Rows
from stores.cosmos.scaling import POLL_S, SERVERLESS_RU, check_room, for_writing
from stores.cosmos.throughput import AUTOSCALE_STEP, MANUAL_MIN, MANUAL_STEP, Throughput, minimum_ru
from stores.cosmos.url import Address
from stores.forecast import Bill, Forecast, Provisioned
from stores.store import Plan, Row

KEPT = (State.SUPERSEDED, State.WITHDRAWN)
NAME_BYTES = 40
"""Around a value in its item: its id, names and quotes, about."""


def bill_of(address: Address, stored_bytes: int = 0) -> Bill:
    """Return what a publish and its release are billed for."""
    born, serving = for_writing(address), address.throughput
    if born is None or serving is None:
        return Bill(float(address.max_ru or SERVERLESS_RU))
    control = Provisioned("catalogue", MANUAL_MIN)
    kept = Throughput(minimum_ru(born.ru, stored_bytes, autoscale=born.autoscale), born.autoscale)
    live = _reached(serving, kept)
    return Bill(
        float(address.max_ru or born.ru),
        writing=(Provisioned("new release", born.ru, born.autoscale), control),
        afterwards=(
            Provisioned("live release", live.ru, live.autoscale),
            Provisioned("release before it, kept", kept.ru, kept.autoscale),
            control,
        ),
    )


def roughly_ru(charges: Charges, plan: Plan) -> float:
    """Return what writing a release and reading it back costs if all of its rows were of the same size."""
    value_bytes = plan.payload_bytes / max(plan.rows, 1)
    size = int(value_bytes * 4 / 3) + NAME_BYTES + SYSTEM_BYTES
    return plan.rows * (charges.create(size, 0) + charges.read(size))


@dataclass(frozen=True, slots=True)
class Publish:
    """What is to be foreseen: a release into a store that has *found*; a copy where *keep* is None."""

    release: ReleaseId
    found: Catalogue
    live: bool
    keep: int | None

    @property
    def is_first(self) -> bool:
        """Tell whether there is no catalogue yet, and nothing that it could be in."""
        return not self.found.generation


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many releases a prune erases, how many it lets rest, and how many of those for the first time."""

    erased: int = 0
    resting: int = 0
    newly: int = 0


async def foresee(
    address: Address, charges: Charges, publish: Publish, batches: AsyncIterable[Sequence[Row]], unasked: str
) -> Forecast:
    """Work a publish out, as `Foreseen.foresee` says; *unasked* says why the account was not, if so."""
    ledger, rows = Ledger(charges, publish.found), Rows(charges, bill_of(address).rate_ru)
    ledger.look()
    ledger.change(partial(changes.begin, release=publish.release), 0.0)
    rows.begin()
    async for batch in batches:
        rows.put(batch)
    check_room(address, Plan(rows.rows, rows.payload_bytes))
    bill = bill_of(address, rows.payload_bytes)
    pruned = _finish(publish, ledger, rows, POLL_S if _is_scaled(bill) else 0.0)
    managing_ru = 0.0
    if address.managed is None:  # Azure Resource Manager charges nothing
        managing_ru += _made_ru(charges, 3 if publish.is_first else 1, pruned.erased)
        managing_ru += _scaled_ru(charges, bill, pruned, live=publish.live)
    return Forecast(
        rows.rows,
        rows.payload_bytes,
        fits=True,
        makes=makes(address, bill, is_first=publish.is_first, live=publish.live),
        request_units={
            "writing rows and lists of their keys": round(rows.writing_ru, 2),
            "reading them back": round(rows.verifying_ru, 2),
            "the state of the release": round(rows.states_ru, 2),
            "the catalogue": round(ledger.spent_ru, 2),
            "making, scaling and dropping containers": round(managing_ru, 2),
        },
        seconds=round(rows.now_s, 3),
        bill=bill,
        notes=notes(address, bill, unasked),
    )


def _finish(publish: Publish, ledger: Ledger, rows: Rows, settles_s: float) -> Pruned:
    """Do what comes after the last row; what goes live has throughput that settles for so long."""
    release = publish.release
    if publish.keep is not None:
        ledger.look()  # for the time in the manifest; a copy has one
    rows.seal()
    rows.verify()
    ledger.look()  # whether what is read back is live
    ledger.renew(release, rows.now_s)
    ledger.change(lambda found: changes.commit(found, release), rows.now_s)
    if publish.live:
        ledger.look()
        rows.activate(settles_s)
        ledger.change(lambda found: changes.activate(found, release), rows.now_s)
    else:
        ledger.look(2)
    return Pruned() if publish.keep is None else _prune(ledger, release, publish.keep, rows.now_s)


def _prune(ledger: Ledger, ours: ReleaseId, keep: int, at_s: float) -> Pruned:
    """Erase what nobody needs and let rest what is kept, as `stores.lifecycle.prune` does."""
    marked = ledger.change(lambda found: changes.prune(found, keep, GRACE_S), at_s)
    dropped = [entry.id for entry in marked.releases if entry.state is State.DROPPING]
    for release in dropped:
        ledger.change(partial(changes.forget, release=release), at_s)
    left = {entry.id: (entry.superseded_at or 0.0) + GRACE_S for entry in marked.releases if entry.state in KEPT}
    resting = [release for release, over_at in left.items() if over_at <= marked.now]
    newly = [release for release in resting if not _pruned_since(marked, left[release], {release, ours})]
    ledger.look(2 * len(resting))
    return Pruned(len(dropped), len(resting), len(newly))


def _pruned_since(found: Catalogue, when: float, but: set[ReleaseId]) -> bool:
    """Tell whether others were published since, for each publish ends with a prune."""
    return any(entry.created_at >= when for entry in found.releases if entry.id not in but)


def _made_ru(charges: Charges, made: int, erased: int) -> float:
    """Return what databases and containers cost to make and to drop; the account answers for it, no container."""
    return (made + erased) * charges.metadata_write


def _is_scaled(bill: Bill) -> bool:
    return bool(bill.writing) and bill.writing[0].ru_s != bill.afterwards[0].ru_s


def _scaled_ru(charges: Charges, bill: Bill, pruned: Pruned, *, live: bool) -> float:
    """Return what it costs to see what containers may spend, and to change it; the account answers for it, too."""
    if not bill.writing:
        return 0.0
    once_ru = 3 * charges.metadata_read  # the container, its offer's name, the offer: read, or read and replaced
    born, then = bill.writing[0], bill.afterwards[0 if live else 1]
    changed = 0 if then.ru_s == born.ru_s else 2 if live else 1  # what goes live is looked at until it has changed
    slept = pruned.newly if bill.afterwards[0].ru_s != bill.afterwards[1].ru_s else 0
    return once_ru * ((2 if live else 1) + changed + pruned.resting + slept)


def _reached(serving: Throughput, least: Throughput) -> Throughput:
    step = AUTOSCALE_STEP if serving.autoscale else MANUAL_STEP
    return Throughput(ceil(max(serving.ru, least.ru) / step) * step, serving.autoscale)
