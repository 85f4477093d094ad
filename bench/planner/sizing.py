"""What a load needs: bytes, reads, request units, partitions and pods.

Each function enters figures in *table*; `figure` returns an entered one as a term, a number that knows its formula.
"""

from math import log
from statistics import fmean

from hotplate.bench.planner.formulas import FigureTable, Term, ceiling, least, most, term
from hotplate.bench.planner.inputs import KEY_BYTES, Inputs, hourly_shares
from hotplate.bench.planner.prices import HOURS_A_MONTH
from hotplate.stores.cosmos import url
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
CONTROL_RU = url.MANUAL_MIN  # of the catalogue's container
DOUBLED = ("bounded", "strong")  # levels that double the charge of reads
EXACT_RANKS = 1_000  # lower ranks of the Zipf law are integrated
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
SKEW = "the hottest user, and an even share of the others"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"


def size(table: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Enter what the load needs of any store, of Cosmos DB and of pods."""
    _sizes(table, inputs)
    _workload(table, inputs)
    _charges(table, inputs, charges)
    _publishing(table, inputs, charges)
    _serving(table, inputs)
    _shares(table)
    _pods_of_region(table, inputs)
    _pod_autoscaler(table, inputs)
    _pods_in_all(table, inputs)


def _sizes(table: FigureTable, inputs: Inputs) -> None:
    """Enter the bytes of a list: as JSON, as stored, as text in an item of Cosmos DB, and as a row of Redis.

    Stored bytes are those of JSON, compressed with zstd if the encoding says so, unless `list_bytes` was measured.
    """
    figure = table.term
    item = term(ITEM_BYTES) + figure("item_id_chars")
    if inputs.title_chars:
        item = item + TITLE_BYTES + figure("title_chars")
    size = table.derive(
        "json_bytes", "bytes", figure("list_length") * item + term(SEPARATOR_BYTES) * (figure("list_length") - 1)
    )
    if inputs.encoding == "zstd":
        size = size * figure("zstd_share")
    stored = table.derive("stored_bytes", "bytes", size if inputs.list_bytes is None else figure("list_bytes"))
    text = _text_bytes(table, inputs)
    id_bytes = ceiling(figure("user_id_chars") * 4 / 3)
    item_bytes = term(SKELETON_BYTES) + id_bytes + text + figure("system_bytes")
    table.derive("item_bytes", "bytes", item_bytes, source='an item {"id":"user.ID","t":"…"} with the id in base64url')
    row = (stored + KEY_BYTES + figure("user_id_chars") + REDIS_HEAD_BYTES + REDIS_ROW_BYTES) * REDIS_ALLOCATED
    source = "key, prefix, release and Redis 7's overhead: within -10 and +13 % of used_memory"
    table.derive("redis_row_bytes", "bytes", row, source=source)


def _text_bytes(table: FigureTable, inputs: Inputs) -> Term:
    """Enter and return the bytes of a stored list as a string in JSON, as an item of Cosmos DB holds it.

    A list compressed with zstd is written in base64, one of JSON lines with escaped quotes and ends of lines.
    """
    figure = table.term
    if inputs.encoding == "zstd":
        return table.derive("text_bytes", "bytes", ceiling(figure("stored_bytes") / 3) * 4, source="base64")
    quotes = QUOTES + TITLE_QUOTES * (inputs.title_chars > 0)
    quoted = figure("stored_bytes") + term(quotes) * figure("list_length") + figure("list_length") - 1
    source = "JSON in JSON: a backslash for each quote and each end of line"
    return table.derive("text_bytes", "bytes", quoted, source=source)


def _workload(table: FigureTable, inputs: Inputs) -> None:
    """Enter what is read, after growth: lists, requests and reads/s, and the share of the busiest user.

    "Then" is after `months` of growth, "peak" the busiest hour. The share of the busiest user is `hot_share`, else that
    of the first user by a Zipf law, else that of one of equally busy users. Reads are requests without cache hits.
    """
    figure = table.term
    growth = (1 + inputs.growth_percent / 100) ** inputs.months
    table.derive("growth", "", growth, "(1 + growth_percent / 100) ** months")
    users = table.derive("users_then", "users", figure("users") * figure("growth"))
    table.derive("rows", "lists", (figure("users") + figure("items")) * figure("growth"))
    table.derive("peak_then", "requests/s", figure("peak_rps") * figure("growth"))
    table.derive("peak_region", "requests/s", figure("peak_then") * figure("region_share"))
    mean = fmean(hourly_shares(inputs.profile))
    table.derive("mean_of_peak", "share", mean, "the mean of profile by its busiest hour")
    keys = max(1, round(users.value))
    if inputs.hot_share is not None:
        table.derive("hot_user", "share", figure("hot_share"))
    elif inputs.zipf is None:
        table.derive("hot_user", "share", 1 / keys, "1 / max(1, round(users_then))")
    else:
        table.derive("hot_user", "share", hottest_share(keys, inputs.zipf), "chance of the first of users_then, zipf")
    table.derive("reads_s", "reads/s", figure("peak_region") * (term(1) - figure("hit_rate")))


def hottest_share(keys: int, exponent: float) -> float:
    """Return the hottest key's share of requests by a Zipf law."""
    near = range(1, min(keys, EXACT_RANKS) + 1)
    low = EXACT_RANKS + 0.5
    high = keys + 0.5
    power = 1 - exponent
    far = log(high / low) if abs(power) < 1e-9 else (high**power - low**power) / power
    return 1.0 / float(sum(rank**-exponent for rank in near) + (far if keys > EXACT_RANKS else 0))


def _charges(table: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Enter the request units (RU) of a read, on average over known and unknown users, and of publishing a list.

    A published list is written and then read back to check it. *charges* are the measured RU of operations by size.
    """
    figure = table.term
    size = round(table["item_bytes"].number)
    strong = inputs.consistency in DOUBLED
    formula = f"charge of a point read of item_bytes{', doubled for its consistency' if strong else ''}"
    table.derive("point_read_ru", "RU", charges.read(size, strong=strong), formula, CHARGES)
    formula = "charge of a read that finds nothing, by consistency"
    table.derive("missed_read_ru", "RU", charges.not_found(strong=strong), formula, CHARGES)
    of_known = (term(1) - figure("unknown_share")) * figure("point_read_ru")
    of_all = of_known + figure("unknown_share") * figure("missed_read_ru")
    source = "hits of the integrated cache cost nothing"
    table.derive("mean_read_ru", "RU", of_all * (term(1) - figure("gateway_hit_rate")), source=source)
    formula = "charge of creating an item of item_bytes without an index"
    table.derive("list_write_ru", "RU", charges.create(size, 0), formula, CHARGES)
    table.derive("read_back_ru", "RU", charges.read(size), "charge of a point read of item_bytes", CHARGES)


def _publishing(table: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Enter the request units (RU), RU/s and hours of a publish, and the GB of all releases that a store holds.

    RU/s of a publish are those of `publish_ru`, else what it needs to end within `window_hours`; within the limits of a
    container. It bills whole hours of the clock: h hours touch h + 1 of them, on average over the minutes of its start.
    """
    figure = table.term
    size = round(table["item_bytes"].number)
    rows = round(table["rows"].number)
    overhead = overhead_ru(charges, rows, size)
    formula = "lists of the keys of rows, the catalogue, the state, containers, and a check before it is served"
    table.derive("publish_rest_ru", "RU", overhead, formula, CHARGES)
    lists = figure("rows") * (figure("list_write_ru") + figure("read_back_ru"))
    total = table.derive("publish_total_ru", "RU", lists + figure("publish_rest_ru"))
    wanted = figure("publish_ru") if inputs.publish_ru is not None else total / (figure("window_hours") * 3600)
    reserved = least(url.MAX_RU, most(url.MANUAL_MIN, ceiling(wanted, url.MANUAL_STEP)))
    reserved = table.derive("publish_ru_s", "RU/s", reserved)
    hours = table.derive("publish_hours", "hours", total / reserved / 3600)
    source = "hours of the clock that it touches, as a mean over its starts; each is billed at its highest RU/s"
    table.derive("publish_billed_hours", "hours", hours + 1, source=source)
    table.derive("publishes", "a month", term(HOURS_A_MONTH) / figure("refresh_hours"))
    table.derive("release_gb", "GB", figure("rows") * figure("item_bytes") / GB)
    source = "live, kept and, while it is written, the next"
    table.derive("copies", "releases", figure("kept") + 2, source=source)
    table.derive("stored_gb", "GB", figure("release_gb") * figure("copies"))


def new_partition_ru(inputs: Inputs) -> int:
    """Return the RU/s for which a new container gets one physical partition."""
    return url.PARTITION_RU if inputs.capacity == "autoscale" else url.INITIAL_PARTITION_RU


def _serving(table: FigureTable, inputs: Inputs) -> None:
    """Enter the RU/s for reads, and the physical partitions, which depend on each other.

    More RU/s need more partitions; over more partitions, the busiest user makes one fuller than the others, which needs
    more RU/s. So both are calculated again until the partitions no longer grow.
    """
    source = f"of a new container, {inputs.capacity}: {PARTITIONS}"
    table.enter("new_partition_ru", new_partition_ru(inputs), "RU/s", source)
    by_gb = most(1, ceiling(table.term("release_gb") / PARTITION_GB))
    needed = table.derive("partitions_by_gb", "partitions", by_gb, source=LIMITS).value
    partitions = 0.0
    while needed > partitions:
        partitions = needed
        needed = _serving_with(table, int(partitions))


def _serving_with(table: FigureTable, partitions: int) -> float:
    """Enter the RU/s for reads from *partitions* physical partitions; return how many a container of these RU/s has.

    Azure divides RU/s evenly, so all partitions get what the fullest needs: `skew` times an even share. A container's
    minimum, `least_ru`, follows from its size and from the highest RU/s that it had, for reads or publishing. The
    caller repeats this with the returned partitions until they agree.
    """
    figure = table.term
    table.enter("partitions", partitions, "partitions", "as many as follow from it: both agree")
    table.derive("skew", "", skew_of(table, figure("partitions")), source=SKEW)
    table.derive("reads_plain_ru", "RU/s", figure("reads_s") * figure("mean_read_ru"))
    table.derive("reads_ru", "RU/s", figure("reads_plain_ru") * figure("skew") / figure("ru_utilisation"))

    reads = ceiling(figure("reads_ru"), url.MANUAL_STEP)
    highest = table.derive("highest_ru", "RU/s", most(figure("publish_ru_s"), reads))
    lowest = ceiling(most(url.MANUAL_MIN, figure("release_gb"), highest / 100), url.MANUAL_STEP)
    lowest = table.derive("least_ru", "RU/s", lowest, source=LIMITS)
    serve = table.derive("serve_ru", "RU/s", most(reads, lowest))
    creation = least(url.MAX_RU, most(highest, serve))
    creation = table.derive("creation_ru", "RU/s", creation, source="what a container is created with")

    new = table.derive(
        "new_partitions", "partitions", ceiling(creation / figure("new_partition_ru")), source=PARTITIONS
    )
    needed = most(new, figure("partitions_by_gb"), ceiling(least(url.MAX_RU, serve) / url.PARTITION_RU))
    return table.derive("partitions", "partitions", needed, source="they stay, whatever RU/s are taken away").value


def skew_of(table: FigureTable, partitions: Term) -> Term:
    """Return the RU/s of the fullest partition as a multiple of an even share."""
    return table.term("hot_user") * (partitions - 1) + 1


def _shares(table: FigureTable) -> None:
    """Enter what one partition has and gets, and the RU/s of all containers during a publish.

    Loads are shares of the RU/s that a partition has: of the busiest user alone, and of all reads of the fullest
    partition. Each release is a container, and control is that of the catalogue.
    """
    figure = table.term
    share = table.derive("partition_ru", "RU/s", figure("serve_ru") / figure("partitions"))
    hot = table.derive("hot_key_ru", "RU/s", figure("reads_s") * figure("hot_user") * figure("mean_read_ru"))
    table.derive("hot_key_load", "share", hot / share)
    table.derive(
        "hot_partition_load", "share", figure("reads_plain_ru") * figure("skew") / figure("partitions") / share
    )
    table.derive("containers", "containers", figure("kept") + 3, source="live, kept, the next one, and control")
    together = figure("serve_ru") + figure("kept") * figure("least_ru") + figure("creation_ru") + CONTROL_RU
    source = "live, kept, draft and control, in the hours of a publish"
    table.derive("together_ru", "RU/s", together, source=source)


def _pods_of_region(table: FigureTable, inputs: Inputs) -> None:
    """Enter the pods of a region: as many as hold the requests at once, and have CPU for their rate.

    By Little's law, a rate of requests/s times the seconds of a request are the requests at once. A pod's rate is
    `pod_rps`, if measured, else its CPU by that of a request. Pods are used to `pod_utilisation` only.
    """
    figure = table.term
    held = figure("peak_region") * figure("request_ms") / 1000
    little = ceiling(held / figure("pod_utilisation") / figure("pod_concurrency"))
    table.derive("pods_by_little", "pods", little, source="Little's law: requests in a pod = rate * time")
    capacity = (
        figure("pod_rps")
        if inputs.pod_rps is not None
        else term(1_000_000) * figure("pod_cpus") / figure("request_cpu_us")
    )
    capacity = table.derive("pod_capacity", "requests/s", capacity)
    table.derive("pods_by_capacity", "pods", ceiling(figure("peak_region") / capacity / figure("pod_utilisation")))
    table.derive("pods_region", "pods", most(figure("pods_by_little"), figure("pods_by_capacity"), figure("min_pods")))


def _pod_autoscaler(table: FigureTable, inputs: Inputs) -> None:
    """Enter the targets of a HorizontalPodAutoscaler (hpa), which adds pods above them, and its most pods.

    The targets are a share of a pod's CPU, and requests/s of a pod: that share of the rate for which it has CPU, or at
    which it holds `pod_concurrency` requests at once, whichever is less.
    """
    figure = table.term
    used = figure("pod_utilisation")
    source = ""
    if inputs.zones > 1:
        used = used * (figure("zones") - 1) / figure("zones")
        source = "room for the load of a lost zone"
    used = table.derive("hpa_utilisation", "share", used, source=source)
    rate_at_concurrency = figure("pod_concurrency") * 1000 / figure("request_ms")
    target = used * least(figure("pod_capacity"), rate_at_concurrency)
    target = table.derive("hpa_pod_rps", "requests/s", target, source="the less by both; pods are added above it")
    source = "room for twice the busiest hour, and for one lost pod"
    table.derive(
        "hpa_most_pods",
        "pods",
        most(figure("min_pods"), ceiling(figure("peak_region") * 2 / target) + 1),
        source=source,
    )


def _pods_in_all(table: FigureTable, inputs: Inputs) -> None:
    """Enter the pods of all regions; with zones, those left carry the load of a lost one."""
    figure = table.term
    pods = figure("pods_region")
    if inputs.zones > 1:
        source = "the other zones carry what one may lose"
        pods = table.derive("pods_zone", "pods", ceiling(pods / (figure("zones") - 1)), source=source) * figure("zones")
    table.derive("pods", "pods", pods * figure("regions"))
