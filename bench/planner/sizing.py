"""What a load needs: bytes, reads, request units, partitions and pods.

Each step adds figures to *table*. `term` returns a figure that is in the table as an expression: a number with its
formula, here its name. Inputs and prices are in the table from the start, others once their step was called.
"""

from math import log
from statistics import fmean

from hotplate.bench.planner.formulas import Expression, FigureTable, ceiling, largest, smallest
from hotplate.bench.planner.inputs import KEY_BYTES, Inputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH
from hotplate.stores.cosmos import url as cosmos
from hotplate.stores.cosmos.charges import Charges, overhead_ru

ITEM_BYTES = len('{"id":"","score":0.1234}')
TITLE_BYTES = len(',"title":""')
SEPARATOR_BYTES = len(",\n")
# Quotes of an item and its title; each is escaped inside a JSON string.
QUOTES = 6
TITLE_QUOTES = 4
# A Cosmos DB item without its id and list.
SKELETON_BYTES = len('{"id":"user.","t":""}')
# Copied from `hotplate.stores.redis.examination`, which needs an extra; a test compares them.
REDIS_ROW_BYTES = 80
REDIS_ALLOCATED = 1.08
REDIS_HEAD_BYTES = len("hotplate:{7f3a0c5e9d12.255}:")
GB = 1000**3
PARTITION_GB = 50
CONTROL_RU = cosmos.MANUAL_MIN  # of the catalogue's container
DOUBLY_CHARGED = ("bounded", "strong")  # levels that double the charge of reads
EXACT_RANKS = 1_000  # lower ranks of the Zipf law are integrated
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
SKEW = "the hottest user, and an even share of the others"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"


def add_requirements(table: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Add to *table* what the load needs of any store, of Cosmos DB and of pods.

    *charges* are the request units (RU) of each operation of Cosmos DB by size. The order is that of the formulas: a
    step calculates with figures of those before it, and raises KeyError without them.
    """
    _add_list_sizes(table, inputs)
    _add_workload(table, inputs)
    _add_request_charges(table, inputs, charges)
    _add_publishing(table, inputs, charges)
    _add_stored_gb(table)
    _add_container(table, inputs)
    _add_partition_loads(table)
    _add_pods_of_region(table, inputs)
    _add_pod_autoscaler(table, inputs)
    _add_pods_of_all_regions(table, inputs)


def _add_list_sizes(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the bytes of a list: as JSON, as stored, as text in an item of Cosmos DB, and as a row of Redis.

    Stored bytes are those of JSON, compressed if the encoding is zstd; a measured `list_bytes` replaces both.
    """
    term = table.expression
    item_bytes = ITEM_BYTES + term("item_id_chars")
    if inputs.title_chars:
        item_bytes = item_bytes + TITLE_BYTES + term("title_chars")
    json_bytes = term("list_length") * item_bytes + SEPARATOR_BYTES * (term("list_length") - 1)
    list_bytes = table.add_calculated("json_bytes", "bytes", json_bytes)

    if inputs.list_bytes is not None:
        list_bytes = term("list_bytes")
    elif inputs.encoding == "zstd":
        list_bytes = list_bytes * term("zstd_share")
    stored_bytes = table.add_calculated("stored_bytes", "bytes", list_bytes)

    text_bytes = _add_text_bytes(table, inputs)
    id_bytes = ceiling(term("user_id_chars") * 4 / 3)
    cosmos_item_bytes = SKELETON_BYTES + id_bytes + text_bytes + term("system_bytes")
    source = 'an item {"id":"user.ID","t":"…"} with the id in base64url'
    table.add_calculated("item_bytes", "bytes", cosmos_item_bytes, source=source)

    redis_bytes = stored_bytes + KEY_BYTES + term("user_id_chars") + REDIS_HEAD_BYTES + REDIS_ROW_BYTES
    source = "key, prefix, release and Redis 7's overhead: within -10 and +13 % of used_memory"
    table.add_calculated("redis_row_bytes", "bytes", redis_bytes * REDIS_ALLOCATED, source=source)


def _add_text_bytes(table: FigureTable, inputs: Inputs) -> Expression:
    """Add to *table*, and return, the bytes of a stored list as a string in JSON, as an item of Cosmos DB holds it.

    A list compressed with zstd becomes base64. A list of JSON lines gets a backslash for each quote and end of line.
    """
    term = table.expression
    if inputs.encoding == "zstd":
        return table.add_calculated("text_bytes", "bytes", ceiling(term("stored_bytes") / 3) * 4, source="base64")

    quotes_per_item = QUOTES
    if inputs.title_chars:
        quotes_per_item += TITLE_QUOTES
    # A backslash for each quote, and for each line end between two items.
    escaped = term("stored_bytes") + quotes_per_item * term("list_length") + term("list_length") - 1
    source = "JSON in JSON: a backslash for each quote and each end of line"
    return table.add_calculated("text_bytes", "bytes", escaped, source=source)


def _add_workload(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the load after growth: lists, requests/s, the share of the busiest user, and reads/s of the store.

    "Then" is after `months` of growth, and "peak" the busiest hour, `region_share` of it that of the busiest region.
    Reads are the requests that no cache answers.
    """
    term = table.expression
    factor = (1 + inputs.growth_percent / 100) ** inputs.months
    growth = table.add_calculated("growth", "", factor, "(1 + growth_percent / 100) ** months")

    table.add_calculated("users_then", "users", term("users") * growth)
    table.add_calculated("rows", "lists", (term("users") + term("items")) * growth)

    peak_then = table.add_calculated("peak_then", "requests/s", term("peak_rps") * growth)
    peak_region = table.add_calculated("peak_region", "requests/s", peak_then * term("region_share"))
    mean_share = fmean(hourly_shares(inputs.profile))
    table.add_calculated("mean_of_peak", "share", mean_share, "the mean of profile by its busiest hour")

    _add_share_of_busiest_user(table, inputs)
    table.add_calculated("reads_s", "reads/s", peak_region * (1 - term("hit_rate")))


def _add_share_of_busiest_user(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the share of requests for the busiest user (`hot_user`).

    That is `hot_share` if it is given, else that of the first user by a Zipf law, else that of equally busy users.
    """
    term = table.expression
    users = max(1, round(term("users_then").value))
    if inputs.hot_share is not None:
        table.add_calculated("hot_user", "share", term("hot_share"))
    elif inputs.zipf is None:
        table.add_calculated("hot_user", "share", 1 / users, "1 / max(1, round(users_then))")
    else:
        share = first_share_by_zipf(users, inputs.zipf)
        table.add_calculated("hot_user", "share", share, "chance of the first of users_then, zipf")


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


def _add_request_charges(table: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Add to *table* the request units (RU) of a read, a mean over known and unknown users, and of publishing a list.

    A published list is written, and read back to check it. *charges* are the measured RU of each operation by size.
    """
    term = table.expression
    size = round(term("item_bytes").value)
    is_doubled = inputs.consistency in DOUBLY_CHARGED

    formula = "charge of a point read of item_bytes"
    if is_doubled:
        formula += ", doubled for its consistency"
    read_ru = charges.read(size, strong=is_doubled)
    point_read_ru = table.add_calculated("point_read_ru", "RU", read_ru, formula, CHARGES)
    formula = "charge of a read that finds nothing, by consistency"
    missed_ru = charges.not_found(strong=is_doubled)
    missed_read_ru = table.add_calculated("missed_read_ru", "RU", missed_ru, formula, CHARGES)

    all_users = (1 - term("unknown_share")) * point_read_ru + term("unknown_share") * missed_read_ru
    source = "hits of the integrated cache cost nothing"
    mean_read = all_users * (1 - term("gateway_hit_rate"))
    table.add_calculated("mean_read_ru", "RU", mean_read, source=source)

    formula = "charge of creating an item of item_bytes without an index"
    table.add_calculated("list_write_ru", "RU", charges.create(size, 0), formula, CHARGES)
    formula = "charge of a point read of item_bytes"
    table.add_calculated("read_back_ru", "RU", charges.read(size), formula, CHARGES)


def _add_publishing(table: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Add to *table* the request units (RU) of a publish, its RU/s and hours, and the publishes of a month.

    Its RU/s are `publish_ru`, else as many as end it within `window_hours`, in Azure's steps and between its limits.
    """
    term = table.expression
    rest_ru = overhead_ru(charges, round(term("rows").value), round(term("item_bytes").value))
    formula = "lists of the keys of rows, the catalogue, the state, containers, and a check before it is served"
    rest = table.add_calculated("publish_rest_ru", "RU", rest_ru, formula, CHARGES)
    lists_ru = term("rows") * (term("list_write_ru") + term("read_back_ru"))
    total_ru = table.add_calculated("publish_total_ru", "RU", lists_ru + rest)

    rate = total_ru / (term("window_hours") * 3600)
    if inputs.publish_ru is not None:
        rate = term("publish_ru")
    whole_steps = largest(cosmos.MANUAL_MIN, ceiling(rate, multiple_of=cosmos.MANUAL_STEP))
    provisioned = table.add_calculated("publish_ru_s", "RU/s", smallest(cosmos.MAX_RU, whole_steps))

    hours = table.add_calculated("publish_hours", "hours", total_ru / provisioned / 3600)
    # A publish of h hours that starts at any minute touches h + 1 hours of the clock on average.
    source = "hours of the clock that it touches, as a mean over its starts; each is billed at its highest RU/s"
    table.add_calculated("publish_billed_hours", "hours", hours + 1, source=source)
    table.add_calculated("publishes", "a month", HOURS_A_MONTH / term("refresh_hours"))


def _add_stored_gb(table: FigureTable) -> None:
    """Add to *table* the GB of a release in Cosmos DB, and of all: live, kept for a rollback, and being written."""
    term = table.expression
    release_gb = table.add_calculated("release_gb", "GB", term("rows") * term("item_bytes") / GB)
    source = "live, kept and, while it is written, the next"
    copies = table.add_calculated("copies", "releases", term("kept") + 2, source=source)
    table.add_calculated("stored_gb", "GB", release_gb * copies)


def _add_container(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the RU/s of the live release's container, and its physical partitions.

    They depend on each other: more RU/s need more partitions; over more partitions, the busiest user makes one fuller
    than the others, which needs more RU/s. So both are calculated again until the partitions no longer grow.
    """
    term = table.expression
    source = f"of a new container, {inputs.capacity}: {PARTITIONS}"
    for_one = cosmos.PARTITION_RU if inputs.capacity == "autoscale" else cosmos.INITIAL_PARTITION_RU
    table.add_value("new_partition_ru", for_one, "RU/s", source)
    by_gb = largest(1, ceiling(term("release_gb") / PARTITION_GB))
    by_gb = table.add_calculated("partitions_by_gb", "partitions", by_gb, source=LIMITS)

    assumed = 0
    needed = int(by_gb.value)
    while needed > assumed:
        assumed = needed
        attempt = FigureTable(table)  # the figures of other attempts are not part of the plan
        needed = _add_container_over(attempt, assumed)
    table.update(attempt)


def _add_container_over(table: FigureTable, assumed: int) -> int:
    """Add to *table* the live release's container if reads spread over *assumed* partitions; return those it then has.

    Azure divides RU/s evenly, so each partition gets what the fullest one needs: `skew` times an even share of the
    reads. `reads_plain_ru` are the RU/s that all reads use; `reads_ru` are those that the container needs for them,
    with this skew and with headroom.
    """
    term = table.expression
    source = "as many as follow from it: both agree"
    partitions = table.add_value("partitions", assumed, "partitions", source)
    skew = table.add_calculated("skew", "", partition_skew(term("hot_user"), partitions), source=SKEW)
    plain_ru = table.add_calculated("reads_plain_ru", "RU/s", term("reads_s") * term("mean_read_ru"))
    table.add_calculated("reads_ru", "RU/s", plain_ru * skew / term("ru_utilisation"))
    _add_container_ru(table)
    return _add_container_partitions(table)


def _add_container_ru(table: FigureTable) -> None:
    """Add to *table* the RU/s of the live release's container: when it is created, and later, when it serves reads.

    It is created with the RU/s for publishing or for reads, whichever are more. Azure then allows no less than 1 RU/s
    for each GB, and a hundredth of the highest RU/s that the container ever had.
    """
    term = table.expression
    for_reads = ceiling(term("reads_ru"), multiple_of=cosmos.MANUAL_STEP)
    highest_ever = table.add_calculated("highest_ru", "RU/s", largest(term("publish_ru_s"), for_reads))

    allowed = largest(cosmos.MANUAL_MIN, term("release_gb"), highest_ever / 100)
    allowed_steps = ceiling(allowed, multiple_of=cosmos.MANUAL_STEP)
    least = table.add_calculated("least_ru", "RU/s", allowed_steps, source=LIMITS)
    serving = table.add_calculated("serve_ru", "RU/s", largest(for_reads, least))

    creation = smallest(cosmos.MAX_RU, largest(highest_ever, serving))
    table.add_calculated("creation_ru", "RU/s", creation, source="what a container is created with")


def _add_container_partitions(table: FigureTable) -> int:
    """Add to *table*, and return, the physical partitions of the live release's container.

    They are the most of those that it is created with, that its GB need, and that its RU/s for serving need.
    """
    term = table.expression
    created = ceiling(term("creation_ru") / term("new_partition_ru"))
    created = table.add_calculated("new_partitions", "partitions", created, source=PARTITIONS)
    for_serving = ceiling(smallest(cosmos.MAX_RU, term("serve_ru")) / cosmos.PARTITION_RU)
    needed = largest(created, term("partitions_by_gb"), for_serving)
    source = "they stay, whatever RU/s are taken away"
    return int(table.add_calculated("partitions", "partitions", needed, source=source).value)


def partition_skew(hot_user: Expression, partitions: Expression) -> Expression:
    """Return the reads of the fullest of *partitions* as a multiple of an even share.

    The fullest one has the busiest user (*hot_user*, a share of the reads), and an even share of the others.
    """
    return hot_user * (partitions - 1) + 1


def _add_partition_loads(table: FigureTable) -> None:
    """Add to *table* the RU/s of a partition, how much of them reads use, and the RU/s of all containers together.

    Loads are shares of a partition's RU/s, for the busiest user alone, and for all reads of the fullest partition.
    During a publish there is a container for the live release, each kept one, the new one, and the catalogue (control).
    """
    term = table.expression
    partition_ru = table.add_calculated("partition_ru", "RU/s", term("serve_ru") / term("partitions"))

    busiest_user = term("reads_s") * term("hot_user") * term("mean_read_ru")
    busiest_user = table.add_calculated("hot_key_ru", "RU/s", busiest_user)
    table.add_calculated("hot_key_load", "share", busiest_user / partition_ru)
    fullest_partition = term("reads_plain_ru") * term("skew") / term("partitions")
    table.add_calculated("hot_partition_load", "share", fullest_partition / partition_ru)

    source = "live, kept, the next one, and control"
    table.add_calculated("containers", "containers", term("kept") + 3, source=source)
    together = term("serve_ru") + term("kept") * term("least_ru") + term("creation_ru") + CONTROL_RU
    source = "live, kept, draft and control, in the hours of a publish"
    table.add_calculated("together_ru", "RU/s", together, source=source)


def _add_pods_of_region(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the pods of a region: as many as hold its requests at once, and have CPU for their rate.

    By Little's law, requests at once are requests/s times the seconds of a request. The rate of a pod is `pod_rps` if
    it was measured, else its CPU by the CPU of a request. Either is used up to the share `pod_utilisation`.
    """
    term = table.expression
    requests_at_once = term("peak_region") * term("request_ms") / 1000
    by_little = ceiling(requests_at_once / term("pod_utilisation") / term("pod_concurrency"))
    source = "Little's law: requests in a pod = rate * time"
    by_little = table.add_calculated("pods_by_little", "pods", by_little, source=source)

    pod_rate = 1_000_000 * term("pod_cpus") / term("request_cpu_us")
    if inputs.pod_rps is not None:
        pod_rate = term("pod_rps")
    pod_rate = table.add_calculated("pod_capacity", "requests/s", pod_rate)
    by_rate = ceiling(term("peak_region") / pod_rate / term("pod_utilisation"))
    by_rate = table.add_calculated("pods_by_capacity", "pods", by_rate)

    table.add_calculated("pods_region", "pods", largest(by_little, by_rate, term("min_pods")))


def _add_pod_autoscaler(table: FigureTable, inputs: Inputs) -> None:
    """Add to *table* the targets and the most pods of a HorizontalPodAutoscaler (hpa), which adds pods above a target.

    One target is a share of a pod's CPU. The other, requests/s of a pod, is that share of its highest rate: the lower
    of the rate for which it has CPU, and that at which it holds `pod_concurrency` requests at once.
    """
    term = table.expression
    cpu_share = term("pod_utilisation")
    source = ""
    if inputs.zones > 1:
        cpu_share = cpu_share * (term("zones") - 1) / term("zones")
        source = "room for the load of a lost zone"
    cpu_share = table.add_calculated("hpa_utilisation", "share", cpu_share, source=source)

    rate_at_concurrency = term("pod_concurrency") * 1000 / term("request_ms")
    target_rate = cpu_share * smallest(term("pod_capacity"), rate_at_concurrency)
    source = "the less by both; pods are added above it"
    target_rate = table.add_calculated("hpa_pod_rps", "requests/s", target_rate, source=source)

    most_pods = largest(term("min_pods"), ceiling(term("peak_region") * 2 / target_rate) + 1)
    source = "room for twice the busiest hour, and for one lost pod"
    table.add_calculated("hpa_most_pods", "pods", most_pods, source=source)


def _add_pods_of_all_regions(table: FigureTable, inputs: Inputs) -> None:
    """Add the pods of all regions to *table*; with zones, those left carry the load of a lost one."""
    term = table.expression
    pods = term("pods_region")
    if inputs.zones > 1:
        source = "the other zones carry what one may lose"
        pods_of_zone = ceiling(pods / (term("zones") - 1))
        pods = table.add_calculated("pods_zone", "pods", pods_of_zone, source=source) * term("zones")
    table.add_calculated("pods", "pods", pods * term("regions"))
