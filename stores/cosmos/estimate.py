"""What a publish into Cosmos DB takes: request units by `hotplate.stores.cosmos.charges`, and what is paid for."""

from hotplate.stores.cosmos.charges import READING, WRITING, Charges, publish_ru
from hotplate.stores.cosmos.containers import check_room, serving_throughput, writing_throughput
from hotplate.stores.cosmos.items import CONTROL
from hotplate.stores.cosmos.url import MANUAL_MIN, SERVERLESS_RU, Address, Offer, Throughput, minimum_ru
from hotplate.stores.store import Bill, Estimate, Plan, Provisioned, PublishCounts


def bill_of(address: Address, stored_bytes: int = 0) -> Bill:
    """Return what a publish and its release are billed for."""
    written, serving = writing_throughput(address), address.throughput
    if written is None or serving is None:
        return Bill(float(address.max_ru or SERVERLESS_RU))
    control = Provisioned("catalogue", MANUAL_MIN)
    kept = minimum_ru(written.ru, stored_bytes, autoscale=written.autoscale)
    live = serving_throughput(serving, Offer(written, kept, pending=False))
    return Bill(
        float(address.max_ru or written.ru),
        writing=(Provisioned("new release", written.ru, written.autoscale), control),
        afterwards=(
            Provisioned("live release", live.ru, live.autoscale),
            Provisioned("release before it, kept", kept, written.autoscale),
            control,
        ),
    )


def estimate_publish(
    address: Address, charges: Charges, plan: Plan, counts: PublishCounts, *, first: bool, live: bool
) -> Estimate:
    """Return what a publish of *plan* takes; see `ProvisionedStore.estimate`. Only rows wait for their share."""
    check_room(address, plan)
    bill = bill_of(address, plan.payload_bytes)
    spent = publish_ru(charges, counts, first=first)
    return Estimate(
        plan.rows,
        plan.payload_bytes,
        fits=True,
        makes=_makes(address, bill, first=first, live=live),
        request_units=spent,
        seconds=round((spent[WRITING] + spent[READING]) / bill.rate_ru, 3),
        bill=bill,
        notes=_notes(address, bill),
    )


def _makes(address: Address, bill: Bill, *, first: bool, live: bool) -> tuple[str, ...]:
    """Say what a publish creates and scales."""
    written = writing_throughput(address)
    made = list[str]()
    if first:
        control = "serverless" if written is None else _described(Throughput(MANUAL_MIN))
        made.append(f"the database {address.database}, unless it is there")
        made.append(f"the container {CONTROL}, of the catalogue: {control}")
    if written is None:
        return *made, "the container of the release: serverless, nothing indexed"
    plural = "s" if written.initial_partitions > 1 else ""
    partitions = f"{written.initial_partitions} physical partition{plural}"
    made.append(f"the container of the release: {_described(written)}, {partitions}, nothing indexed")
    then = bill.afterwards[0 if live else 1].ru_s
    if then != written.ru:
        scaled = _described(Throughput(then, written.autoscale))
        made.append(f"which is scaled to {scaled} before it {'goes live' if live else 'waits'}")
    return tuple(made)


def _notes(address: Address, bill: Bill) -> tuple[str, ...]:
    """Say what was assumed, and what could go wrong."""
    notes = list[str]()
    if not bill.writing:
        notes.append(f"assumed: a serverless container gives {bill.rate_ru:,.0f} RU/s, which is not guaranteed")
    if address.key is None and address.arm is None:
        notes.append(
            "publishing will be refused: Entra ID alone cannot make containers; add resource_group= to the URL"
        )
    written, serving = writing_throughput(address), address.throughput
    if written is not None and serving is not None and written.initial_partitions > serving.initial_partitions:
        partitions, live_ru = written.initial_partitions, bill.afterwards[0].ru_s
        notes.append(
            f"a container that is made with {written.ru:,} RU/s has {partitions} physical partitions for good: "
            f"once it serves with {live_ru:,} RU/s, one key can be read at {live_ru / partitions:,.0f} RU/s at most"
        )
    return tuple(notes)


def _described(throughput: Throughput) -> str:
    return f"{throughput.ru:,} RU/s, {'autoscale' if throughput.autoscale else 'manual'}"
