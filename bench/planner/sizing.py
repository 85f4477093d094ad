"""What a load needs: bytes, reads, request units, partitions and pods.

Each step adds figures to *table*. A figure in the table is an expression: a number with its formula, here its name.
Inputs and prices are in the table from the start, others once their step was called. A step reads inputs from the table
only, which records them as operands.
"""

from functools import partial
from math import log
from statistics import fmean
from typing import cast, get_type_hints

from hotplate.base.recommendations import ENTRY_TEXTS, ITEM_FIELDS, Item
from hotplate.bench.planner.formulas import (
    Expression,
    FigureTable,
    NotPossible,
    apply,
    at_most,
    ceiling,
    choose,
    largest,
    round_up,
    smallest,
)
from hotplate.bench.planner.inputs import POD_STORES, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH
from hotplate.stores.cosmos import url as cosmos
from hotplate.stores.cosmos.charges import SYSTEM_BYTES, Charges, overhead_ru
from hotplate.stores.cosmos.items import MAX_ITEM_BYTES, item_bytes, name_of, to_item
from hotplate.stores.encoding import OFFSET_BYTES, SEPARATOR, USER, encode
from hotplate.stores.redis import footprint

# A computed item with all its fields, without the characters of its texts; and items as they are stored.
FIELD_TYPES = get_type_hints(Item)
TITLED = {name: "" if FIELD_TYPES[name] is str else 0.1234 for name in ITEM_FIELDS if name not in ENTRY_TEXTS}
UNTITLED = {name: value for name, value in TITLED.items() if name != "title"}
ITEM, TITLED_ITEM = (encode([cast("Item", fields)])[OFFSET_BYTES:] for fields in (UNTITLED, TITLED))
ITEM_BYTES = len(ITEM)
TITLE_BYTES = len(TITLED_ITEM) - ITEM_BYTES
# Each quote is escaped inside a JSON string.
QUOTES = ITEM.count(b'"')
TITLE_QUOTES = TITLED_ITEM.count(b'"') - QUOTES
# A Cosmos DB item without its id and list.
SKELETON_BYTES = item_bytes(to_item(name_of(USER), b"")) - SYSTEM_BYTES
GB = 1000**3
PARTITION_GB = 50
POLL_INTERVAL_S = 2.0  # between polls of the catalogue, 1 RU each
DOUBLY_CHARGED = ("bounded", "strong")  # levels that double the charge of reads
EXACT_RANKS = 1_000  # lower ranks of the Zipf law are integrated
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
# The obstacle of a publish that ends after the next one begins.
TOO_SLOW = "time of a publish: {:,.1f} hours, and the next begins after {:g}"
SKEW = "the hottest user, and an even share of the others"
FEWEST = f"the fewest of at most {cosmos.PARTITION_RU:,} RU/s each that hold the reads of the fullest one"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"
# Lines of the report: figures by their words, in groups.
UNITS = {
    "an item": "item_bytes", "a read": "mean_read_ru", "a written list": "list_write_ru",
    "a list read back": "read_back_ru",
}  # fmt: skip
OUTLINE = {
    "Load": {
        "lists": "rows", "requests/s, busiest hour and region": "peak_region", "answered by a cache": "hit_rate",
        "reads/s of the store": "reads_s", "a stored list": "stored_bytes",
    },
    "Cosmos DB: request units": {
        **UNITS, "a publish": "publish_total_ru", "for reads, with headroom": "reads_ru",
        "provisioned for reads": "serve_ru", "for publishing": "publish_ru_s",
        "together, while a release is published": "together_ru", "a publish takes": "publish_hours",
    },
    "Cosmos DB: containers": {
        "partitions if created with these RU/s": "new_partitions",
        "partitions that are enough": "partitions", "autoscale: partitions": "autoscale_partitions",
        "RU/s of a partition": "partition_ru",
        "lowest RU/s of a kept release": "least_ru", "autoscale maximum": "autoscale_top_ru",
        "average autoscale RU/s": "autoscale_mean_ru", "storage, all releases": "stored_gb",
    },
    "Pods, in all": {
        "by Azure ML's formula, in a region": "pods_by_little", "at least, in a region": "min_pods",
        "Cosmos DB": "cosmos_pods", "Redis": "redis_pods", "files": "files_pods",
    },
    "Autoscaler of a region": {
        "target: CPU of a pod": "hpa_utilisation", "target of a pod, Cosmos DB": "cosmos_hpa_pod_rps",
        "target of a pod, Redis": "redis_hpa_pod_rps", "target of a pod, files": "files_hpa_pod_rps",
        "pods at most, Cosmos DB": "cosmos_hpa_most_pods", "pods at most, Redis": "redis_hpa_most_pods",
        "pods at most, files": "files_hpa_most_pods",
    },
}  # fmt: skip


def add_requirements(table: FigureTable, charges: Charges) -> None:
    """Add to *table* what the load needs of any store, of Cosmos DB and of pods.

    *charges* are the request units (RU) of each operation of Cosmos DB by size. The order is that of the formulas: a
    step calculates with figures of those before it, and raises KeyError without them.
    """
    _add_list_sizes(table)
    _add_row_sizes(table)
    _add_workload(table)
    _add_read_charges(table, charges)
    _add_list_charges(table, charges)
    _add_publishing(table, charges)
    _add_stored_gb(table)
    _add_manual_container(table)
    _add_autoscale_container(table)
    _add_pods(table)
    _add_polls(table)
    _add_together(table)


def _add_list_sizes(table: FigureTable) -> None:
    """Add to *table* the bytes of a list, as JSON and as stored.

    Stored bytes are those of JSON, compressed if the encoding is zstd; a measured `list_bytes` replaces both.
    """
    title_bytes = choose(table["title_chars"] > 0, TITLE_BYTES + table["title_chars"], 0)
    item_size = ITEM_BYTES + table["item_id_chars"] + title_bytes
    json_bytes = table.add_calculated(
        "json_bytes", "bytes", table["list_length"] * item_size + len(SEPARATOR) * (table["list_length"] - 1)
    )

    is_compressed = table.is_choice("encoding", "zstd")
    encoded = choose(is_compressed, json_bytes * table["zstd_share"], json_bytes)
    table.add_calculated("stored_bytes", "bytes", table.given_or("list_bytes", encoded))


def _add_row_sizes(table: FigureTable) -> None:
    """Add to *table* the bytes of a list with its key: as an item of Cosmos DB, and as a row of Redis."""
    stored_bytes = table["stored_bytes"]
    # zstd becomes base64; a list of JSON lines gets a backslash for each quote and each end of line.
    quotes = QUOTES + choose(table["title_chars"] > 0, TITLE_QUOTES, 0)
    text_bytes = choose(
        table.is_choice("encoding", "zstd"),
        ceiling(stored_bytes / 3) * 4,
        stored_bytes + quotes * table["list_length"] + table["list_length"] - 1,
    )
    text_bytes = table.add_calculated(
        "text_bytes",
        "bytes",
        text_bytes,
        source="base64 of zstd; or JSON in JSON: a backslash for each quote and each end of line",
    )

    id_bytes = ceiling(table["user_id_chars"] * 4 / 3)
    table.add_calculated(
        "item_bytes",
        "bytes",
        SKELETON_BYTES + id_bytes + text_bytes + table["system_bytes"],
        source='an item {"id":"user.ID","t":"…"} with the id in base64url',
    )

    redis_bytes = stored_bytes + len(USER) + table["user_id_chars"] + footprint.HEAD_BYTES + footprint.ROW_BYTES
    table.add_calculated(
        "redis_row_bytes",
        "bytes",
        redis_bytes * footprint.ALLOCATED,
        source="key, prefix, release and Redis 7's overhead: within -10 and +13 % of used_memory",
    )


def _add_workload(table: FigureTable) -> None:
    """Add to *table* the load after growth: lists, requests/s, the share of the busiest user, and reads/s of the store.

    "Then" is after `months` of growth, and "peak" the busiest hour, `region_share` of it that of the busiest region.
    Reads are the requests that no cache answers.
    """
    growth = apply(
        lambda percent, months: (1 + percent / 100) ** months,
        table["growth_percent"],
        table["months"],
        text="(1 + growth_percent / 100) ** months",
    )
    growth = table.add_calculated("growth", "", growth)

    table.add_calculated("users_then", "users", table["users"] * growth)
    table.add_calculated("rows", "lists", (table["users"] + table["items"]) * growth)

    peak_then = table.add_calculated("peak_then", "requests/s", table["peak_rps"] * growth)
    peak_region = table.add_calculated("peak_region", "requests/s", peak_then * table["region_share"])
    mean_share = apply(
        lambda profile: fmean(hourly_shares(profile)),
        table["profile"],
        text="the mean of profile by its busiest hour",
    )
    table.add_calculated("mean_of_peak", "share", mean_share)

    table.add_calculated("hot_user", "share", _share_of_busiest_user(table))
    table.add_calculated("reads_s", "reads/s", peak_region * (1 - table["hit_rate"]))


def _share_of_busiest_user(table: FigureTable) -> Expression:
    """Return the share of requests for the busiest user.

    That is `hot_share` if it is given, else that of the first user by a Zipf law.
    """
    by_law = apply(
        lambda users, exponent: first_share_by_zipf(max(1, round(users)), exponent),
        table["users_then"],
        table["zipf"],
        text="chance of the first of users_then, zipf",
    )
    return table.given_or("hot_share", by_law)


def first_share_by_zipf(keys: int, exponent: float) -> float:
    """Return the share of requests for the first of *keys*, if the key of rank r gets a share of 1 / r ** exponent.

    The sum of these shares is exact for the first `EXACT_RANKS` ranks, and an integral over the others.
    """
    total = float(sum(rank**-exponent for rank in range(1, min(keys, EXACT_RANKS) + 1)))

    if keys > EXACT_RANKS:
        low = EXACT_RANKS + 0.5
        high = keys + 0.5
        power = 1 - exponent
        total += log(high / low) if abs(power) < 1e-9 else (high**power - low**power) / power
    return 1.0 / total


def _stored_item_bytes(table: FigureTable) -> Expression:
    """Return the bytes of an item; an obstacle if Cosmos DB stores none of this size."""
    return at_most(table["item_bytes"], MAX_ITEM_BYTES, "size of an item: {:,.0f} bytes, above {:,}")


def _add_read_charges(table: FigureTable, charges: Charges) -> None:
    """Add to *table* the request units (RU) of a read, a mean over known and unknown users, and of all reads.

    *charges* are the measured RU of each operation by size.
    """
    size = _stored_item_bytes(table)
    is_doubled = table.is_choice("consistency", *DOUBLY_CHARGED)

    read_ru = apply(
        lambda size, strong: charges.read(round(size), strong=strong),
        size,
        is_doubled,
        text="charge of a point read of item_bytes, by consistency",
    )
    point_read_ru = table.add_calculated("point_read_ru", "RU", read_ru, CHARGES)
    missed_ru = apply(
        lambda strong: charges.not_found(strong=strong),
        is_doubled,
        text="charge of a read that finds nothing, by consistency",
    )
    missed_read_ru = table.add_calculated("missed_read_ru", "RU", missed_ru, CHARGES)

    all_users = (1 - table["unknown_share"]) * point_read_ru + table["unknown_share"] * missed_read_ru
    mean_read = table.add_calculated(
        "mean_read_ru",
        "RU",
        all_users * (1 - table["gateway_hit_rate"]),
        source="hits of the integrated cache cost nothing",
    )
    reads_ru = table.add_calculated("reads_plain_ru", "RU/s", table["reads_s"] * mean_read)
    table.add_calculated(
        "reads_even_ru",
        "RU/s",
        reads_ru / table["ru_utilisation"],
        source="with headroom, if partitions were equally full",
    )
    table.add_calculated("hot_key_ru", "RU/s", table["reads_s"] * table["hot_user"] * mean_read)


def _add_list_charges(table: FigureTable, charges: Charges) -> None:
    """Add to *table* the request units (RU) of publishing a list: it is written, and read back to check it."""
    size = _stored_item_bytes(table)
    list_write_ru = apply(
        lambda size: charges.create(round(size), 0),
        size,
        text="charge of creating an item of item_bytes without an index",
    )
    table.add_calculated("list_write_ru", "RU", list_write_ru, CHARGES)
    read_back_ru = apply(lambda size: charges.read(round(size)), size, text="charge of a point read of item_bytes")
    table.add_calculated("read_back_ru", "RU", read_back_ru, CHARGES)


def _add_publishing(table: FigureTable, charges: Charges) -> None:
    """Add to *table* the request units (RU) of a publish, its RU/s and hours, and the publishes of a month.

    Its RU/s are `publish_ru`, else as many as end it within `window_hours` and before the next one, in Azure's steps
    and between its limits.
    """
    rest_ru = apply(
        lambda rows, size: overhead_ru(charges, round(rows), round(size)),
        table["rows"],
        _stored_item_bytes(table),
        text="lists of the keys of rows, the catalogue, the state, containers, and a check before it is served",
    )
    rest = table.add_calculated("publish_rest_ru", "RU", rest_ru, CHARGES)
    lists_ru = table["rows"] * (table["list_write_ru"] + table["read_back_ru"])
    total_ru = table.add_calculated("publish_total_ru", "RU", lists_ru + rest)

    rate = table.given_or("publish_ru", total_ru / (smallest(table["window_hours"], table["refresh_hours"]) * 3600))
    whole_steps = largest(cosmos.MANUAL_MIN, ceiling(rate, multiple_of=cosmos.MANUAL_STEP))
    provisioned = table.add_calculated("publish_ru_s", "RU/s", smallest(cosmos.MAX_RU, whole_steps))

    hours = table.add_calculated("publish_hours", "hours", total_ru / provisioned / 3600)
    # A publish of h hours that starts at any minute touches h + 1 hours of the clock on average.
    billed = at_most(hours, table["refresh_hours"], TOO_SLOW) + 1
    table.add_calculated(
        "publish_billed_hours",
        "hours",
        billed,
        source="hours of the clock that it touches, as a mean over its starts; each is billed at its highest RU/s",
    )
    table.add_calculated("publishes", "a month", HOURS_A_MONTH / table["refresh_hours"])


def _add_stored_gb(table: FigureTable) -> None:
    """Add to *table* the GB of a release in Cosmos DB, and of all: live, kept for a rollback, and being written."""
    release_gb = table.add_calculated("release_gb", "GB", table["rows"] * table["item_bytes"] / GB)
    copies = table.add_calculated(
        "copies", "releases", table["kept"] + 2, source="live, kept and, while it is written, the next"
    )
    table.add_calculated("stored_gb", "GB", release_gb * copies)
    table.add_calculated(
        "partitions_by_gb", "partitions", largest(1, ceiling(release_gb / PARTITION_GB)), source=LIMITS
    )


def fewest_partitions(reads_ru: float, hot_user: float, least: float, *, step: int) -> int:
    """Return the fewest physical partitions, *least* or more, over which the reads are possible.

    Azure divides RU/s evenly, so each partition gets what the fullest one needs, which has the busiest user
    (*hot_user*, a share of the reads): more partitions need more RU/s. *reads_ru* are those that reads need, with
    headroom, if they were spread evenly; *step* is that of RU/s. Raises NotPossible beyond the limits of a partition or
    a container.
    """
    hot_ru = reads_ru * hot_user
    if hot_ru > cosmos.PARTITION_RU:
        raise NotPossible(
            f"RU/s of a partition: {hot_ru:,.0f} for the busiest user, with headroom, above {cosmos.PARTITION_RU:,}"
        )
    partitions = round(least)
    while True:
        needed_ru = round_up(reads_ru * (1 + hot_user * (partitions - 1)), step)
        if needed_ru > cosmos.MAX_RU:
            raise NotPossible(
                f"RU/s of a container: {needed_ru:,} for reads, above {cosmos.MAX_RU:,}, the most without a support "
                "ticket"
            )
        if needed_ru <= partitions * cosmos.PARTITION_RU:
            return partitions
        partitions = -(-needed_ru // cosmos.PARTITION_RU)


def partition_skew(hot_user: Expression, partitions: Expression) -> Expression:
    """Return the reads of the fullest of *partitions* as a multiple of an even share.

    The fullest one has the busiest user (*hot_user*, a share of the reads), and an even share of the others.
    """
    return hot_user * (partitions - 1) + 1


def _add_partitions(table: FigureTable, prefix: str, *, created: Expression, step: int) -> Expression:
    """Add to *table* the partitions of the live release's container, their skew, and the RU/s for reads; return these.

    Names of the figures begin with *prefix*. The container is *created* with some partitions, and its RU/s are in steps
    of *step*.
    """
    least_name = f"{prefix}least_partitions"
    least = table.add_calculated(
        least_name, "partitions", largest(created, table["partitions_by_gb"]), source=PARTITIONS
    )
    partitions = apply(
        partial(fewest_partitions, step=step),
        table["reads_even_ru"],
        table["hot_user"],
        least,
        text=f"{FEWEST}, by reads_even_ru and hot_user, {least_name} or more",
    )
    partitions = table.add_calculated(
        f"{prefix}partitions", "partitions", partitions, "they stay, whatever RU/s are taken away"
    )
    skew = table.add_calculated(f"{prefix}skew", "", partition_skew(table["hot_user"], partitions), source=SKEW)
    return table.add_calculated(f"{prefix}reads_ru", "RU/s", table["reads_plain_ru"] * skew / table["ru_utilisation"])


def _add_manual_container(table: FigureTable) -> None:
    """Add to *table* the live release's container with manual RU/s: partitions, RU/s when it is created and later.

    It is created with the RU/s for publishing or for reads, whichever are more. Azure then allows no less than 1 RU/s
    for each GB, and a hundredth of the highest RU/s that the container ever had.
    """
    created = ceiling(table["publish_ru_s"] / cosmos.INITIAL_PARTITION_RU)
    reads_ru = _add_partitions(table, "", created=created, step=cosmos.MANUAL_STEP)
    for_reads = ceiling(reads_ru, multiple_of=cosmos.MANUAL_STEP)
    highest_ever = table.add_calculated("highest_ru", "RU/s", largest(table["publish_ru_s"], for_reads))
    allowed = largest(cosmos.MANUAL_MIN, table["release_gb"], highest_ever / 100)
    least = table.add_calculated("least_ru", "RU/s", ceiling(allowed, multiple_of=cosmos.MANUAL_STEP), source=LIMITS)
    serving = table.add_calculated("serve_ru", "RU/s", largest(for_reads, least))
    creation = table.add_calculated(
        "creation_ru",
        "RU/s",
        largest(highest_ever, serving),
        source="what a container is created with, unless a hot user needs fewer partitions",
    )
    table.add_calculated(
        "new_partitions",
        "partitions",
        largest(ceiling(creation / cosmos.INITIAL_PARTITION_RU), table["partitions_by_gb"]),
        source=f"of a container that is created with creation_ru: {PARTITIONS}",
    )
    table.add_calculated("partition_ru", "RU/s", serving / table["partitions"])


def _add_autoscale_container(table: FigureTable) -> None:
    """Add to *table* the live release's container with autoscale: partitions, and its maximum ("top").

    It is created with a maximum for publishing or for reads. Azure then allows no maximum below a tenth of the highest
    one so far, or below 10 RU/s for each GB.
    """
    step = cosmos.AUTOSCALE_STEP
    created = ceiling(ceiling(table["publish_ru_s"], multiple_of=step) / cosmos.PARTITION_RU)
    reads_ru = _add_partitions(table, "autoscale_", created=created, step=step)

    created_top = table.add_calculated(
        "autoscale_created_ru",
        "RU/s",
        ceiling(largest(cosmos.AUTOSCALE_MIN, reads_ru, table["publish_ru_s"]), multiple_of=step),
    )
    allowed = ceiling(largest(cosmos.AUTOSCALE_MIN, created_top / 10, table["release_gb"] * 10), multiple_of=step)
    allowed = table.add_calculated("autoscale_least_ru", "RU/s", allowed, source=LIMITS)
    table.add_calculated(
        "autoscale_top_ru",
        "RU/s",
        largest(ceiling(reads_ru, multiple_of=step), allowed),
        source="in each region; at least a tenth of the highest top ever",
    )


def _add_pods(table: FigureTable) -> None:
    """Add to *table* the pods for each store, and the targets and most pods of a HorizontalPodAutoscaler (hpa).

    Targets are a share of a pod's CPU, and requests/s of a pod, that share of its highest rate; above them, pods are
    added.
    """
    if "request_ms" in table:
        in_pods = table["peak_region"] * table["request_ms"] / 1000
        replicas = ceiling(in_pods / table["pod_utilisation"] / table["pod_concurrency"])
        source = "Azure ML's formula, for each store: requests in a pod = rate * time (Little's law)"
        table.add_calculated("pods_by_little", "pods", replicas, source=source)

    cpu_share = choose(
        table["zones"] > 1,
        table["pod_utilisation"] * (table["zones"] - 1) / table["zones"],
        table["pod_utilisation"],
    )
    table.add_calculated("hpa_utilisation", "share", cpu_share, source="with zones: room for the load of a lost one")
    for store in POD_STORES:
        _add_pods_with(table, store)
        _add_autoscaler(table, store)


def _add_pods_with(table: FigureTable, store: str) -> None:
    """Add to *table* the pods that read one *store*: as many as have CPU for the rate of a region, in all regions.

    The rate of a pod is the measured one with this store, else its CPU by the CPU of a request. It is used up to the
    share `pod_utilisation`. With zones, those left carry the load of a lost one.
    """
    pod_rate = table.given_or(f"{store}_pod_rps", 1_000_000 * table["pod_cpus"] / table[f"{store}_cpu_us"])
    rate = table.add_calculated(f"{store}_pod_capacity", "requests/s", pod_rate)
    by_rate = table.add_calculated(
        f"{store}_pods_by_capacity", "pods", ceiling(table["peak_region"] / rate / table["pod_utilisation"])
    )
    pods_region = largest(by_rate, table["min_pods"])
    if "request_ms" in table:
        pods_region = largest(table["pods_by_little"], by_rate, table["min_pods"]).decided_by(table["request_ms"])
    pods_region = table.add_calculated(f"{store}_pods_region", "pods", pods_region)
    zoned: Expression = pods_region
    if table["zones"].result > 1:
        zoned = ceiling(pods_region / (table["zones"] - 1)) * table["zones"]
    table.add_calculated(
        f"{store}_pods",
        "pods",
        zoned.decided_by(table["zones"]) * table["regions"],
        source="with zones, the others carry what one may lose",
    )


def _add_autoscaler(table: FigureTable, store: str) -> None:
    """Add to *table* the target and the most pods of a HorizontalPodAutoscaler of pods that read one *store*."""
    rate = table[f"{store}_pod_capacity"]
    highest_rate: Expression = rate
    if "request_ms" in table:
        highest_rate = smallest(rate, table["pod_concurrency"] * 1000 / table["request_ms"])
    target_rate = table.add_calculated(
        f"{store}_hpa_pod_rps", "requests/s", table["hpa_utilisation"] * highest_rate, "pods are added above it"
    )
    most_pods = largest(table[f"{store}_pods"] / table["regions"], ceiling(table["peak_region"] * 2 / target_rate) + 1)
    table.add_calculated(
        f"{store}_hpa_most_pods", "pods", most_pods, "room for twice the busiest hour, and for one lost pod"
    )


def _add_polls(table: FigureTable) -> None:
    """Add to *table* the RU/s for the catalogue, which each process of each pod polls, and those of its container."""
    poll_ru = choose(table.is_choice("consistency", *DOUBLY_CHARGED), 2, 1)
    polls = table.add_calculated(
        "polls_ru",
        "RU/s",
        table["cosmos_pods"] * ceiling(table["pod_cpus"]) / POLL_INTERVAL_S * poll_ru,
        source="each process polls the catalogue",
    )
    in_region = ceiling(polls / table["regions"] / table["ru_utilisation"], multiple_of=cosmos.MANUAL_STEP)
    table.add_calculated(
        "control_ru", "RU/s", largest(cosmos.MANUAL_MIN, in_region), source="the catalogue's container, in each region"
    )


def _add_together(table: FigureTable) -> None:
    """Add to *table* the manual RU/s of all containers during a publish.

    They are those of the live release, each kept one, the new one, and the catalogue (control).
    """
    together = table["serve_ru"] + table["kept"] * table["least_ru"] + table["creation_ru"] + table["control_ru"]
    table.add_calculated(
        "together_ru", "RU/s", together, source="live, kept, draft and control, in the hours of a publish"
    )
