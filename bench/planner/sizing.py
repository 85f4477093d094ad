"""What a load needs: bytes, reads, request units, partitions and pods.

In these functions *t* is the table that they enter figures in, and `n` returns a figure as a term for a formula.
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


def _sizes(t: FigureTable, inputs: Inputs) -> None:
    """Enter the bytes of a list: as JSON, as stored, as text in an item of Cosmos DB, and as a row of Redis."""
    n = t.term
    item = term(ITEM_BYTES) + n("item_id_chars")
    if inputs.title_chars:
        item = item + TITLE_BYTES + n("title_chars")
    size = t.derive("json_bytes", "bytes", n("list_length") * item + term(SEPARATOR_BYTES) * (n("list_length") - 1))
    if inputs.encoding == "zstd":
        size = size * n("zstd_share")
    stored = t.derive("stored_bytes", "bytes", size if inputs.list_bytes is None else n("list_bytes"))
    text = _text_bytes(t, inputs)
    whole = term(SKELETON_BYTES) + ceiling(n("user_id_chars") * 4 / 3) + text + n("system_bytes")
    t.derive("item_bytes", "bytes", whole, source='an item {"id":"user.ID","t":"…"} with the id in base64url')
    row = (stored + KEY_BYTES + n("user_id_chars") + REDIS_HEAD_BYTES + REDIS_ROW_BYTES) * REDIS_ALLOCATED
    source = "key, prefix, release and Redis 7's overhead: within -10 and +13 % of used_memory"
    t.derive("redis_row_bytes", "bytes", row, source=source)


def _text_bytes(t: FigureTable, inputs: Inputs) -> Term:
    """Enter the bytes of a stored list as a text in JSON."""
    n = t.term
    if inputs.encoding == "zstd":
        return t.derive("text_bytes", "bytes", ceiling(n("stored_bytes") / 3) * 4, source="base64")
    quotes = QUOTES + TITLE_QUOTES * (inputs.title_chars > 0)
    quoted = n("stored_bytes") + term(quotes) * n("list_length") + n("list_length") - 1
    source = "JSON in JSON: a backslash for each quote and each end of line"
    return t.derive("text_bytes", "bytes", quoted, source=source)


def _workload(t: FigureTable, inputs: Inputs) -> None:
    """Enter what is read, after growth: lists, requests and reads/s, and the share of the busiest user."""
    n = t.term
    growth = (1 + inputs.growth_percent / 100) ** inputs.months
    t.derive("growth", "", growth, "(1 + growth_percent / 100) ** months")
    users = t.derive("users_then", "users", n("users") * n("growth"))
    t.derive("rows", "lists", (n("users") + n("items")) * n("growth"))
    t.derive("peak_then", "requests/s", n("peak_rps") * n("growth"))
    t.derive("peak_region", "requests/s", n("peak_then") * n("region_share"))
    mean = fmean(hourly_shares(inputs.profile))
    t.derive("mean_of_peak", "share", mean, "the mean of profile by its busiest hour")
    keys = max(1, round(users.value))
    if inputs.hot_share is not None:
        t.derive("hot_user", "share", n("hot_share"))
    elif inputs.zipf is None:
        t.derive("hot_user", "share", 1 / keys, "1 / max(1, round(users_then))")
    else:
        t.derive("hot_user", "share", hottest_share(keys, inputs.zipf), "chance of the first of users_then, zipf")
    t.derive("reads_s", "reads/s", n("peak_region") * (term(1) - n("hit_rate")))


def hottest_share(keys: int, exponent: float) -> float:
    """Return the hottest key's share of requests by a Zipf law."""
    near = range(1, min(keys, EXACT_RANKS) + 1)
    low = EXACT_RANKS + 0.5
    high = keys + 0.5
    power = 1 - exponent
    far = log(high / low) if abs(power) < 1e-9 else (high**power - low**power) / power
    return 1.0 / float(sum(rank**-exponent for rank in near) + (far if keys > EXACT_RANKS else 0))


def _charges(t: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Enter the request units of reads, by consistency and unknown users, and of a written list."""
    n = t.term
    size = round(t["item_bytes"].number)
    strong = inputs.consistency in DOUBLED
    formula = f"charge of a point read of item_bytes{', doubled for its consistency' if strong else ''}"
    t.derive("point_read_ru", "RU", charges.read(size, strong=strong), formula, CHARGES)
    formula = "charge of a read that finds nothing, by consistency"
    t.derive("missed_read_ru", "RU", charges.not_found(strong=strong), formula, CHARGES)
    known = (term(1) - n("unknown_share")) * n("point_read_ru")
    missed = known + n("unknown_share") * n("missed_read_ru")
    source = "hits of the integrated cache cost nothing"
    t.derive("mean_read_ru", "RU", missed * (term(1) - n("gateway_hit_rate")), source=source)
    formula = "charge of creating an item of item_bytes without an index"
    t.derive("list_write_ru", "RU", charges.create(size, 0), formula, CHARGES)
    t.derive("read_back_ru", "RU", charges.read(size), "charge of a point read of item_bytes", CHARGES)


def _publishing(t: FigureTable, inputs: Inputs, charges: Charges) -> None:
    """Enter the request units, RU/s and hours of a publish, and the storage of all kept releases."""
    n = t.term
    size = round(t["item_bytes"].number)
    rows = round(t["rows"].number)
    overhead = overhead_ru(charges, rows, size)
    formula = "lists of the keys of rows, the catalogue, the state, containers, and a check before it is served"
    t.derive("publish_rest_ru", "RU", overhead, formula, CHARGES)
    lists = n("rows") * (n("list_write_ru") + n("read_back_ru"))
    total = t.derive("publish_total_ru", "RU", lists + n("publish_rest_ru"))
    wanted = n("publish_ru") if inputs.publish_ru is not None else total / (n("window_hours") * 3600)
    reserved = least(url.MAX_RU, most(url.MANUAL_MIN, ceiling(wanted, url.MANUAL_STEP)))
    reserved = t.derive("publish_ru_s", "RU/s", reserved)
    hours = t.derive("publish_hours", "hours", total / reserved / 3600)
    source = "hours of the clock that it touches, as a mean over its starts; each is billed at its highest RU/s"
    t.derive("publish_billed_hours", "hours", hours + 1, source=source)
    t.derive("publishes", "a month", term(HOURS_A_MONTH) / n("refresh_hours"))
    t.derive("release_gb", "GB", n("rows") * n("item_bytes") / GB)
    source = "live, kept and, while it is written, the next"
    t.derive("copies", "releases", n("kept") + 2, source=source)
    t.derive("stored_gb", "GB", n("release_gb") * n("copies"))


def new_partition_ru(inputs: Inputs) -> int:
    """Return the RU/s for which a new container gets one physical partition."""
    return url.PARTITION_RU if inputs.capacity == "autoscale" else url.INITIAL_PARTITION_RU


def _serving(t: FigureTable, inputs: Inputs) -> None:
    """Skew and the number of partitions depend on each other: a fixed point."""
    source = f"of a new container, {inputs.capacity}: {PARTITIONS}"
    t.enter("new_partition_ru", new_partition_ru(inputs), "RU/s", source)
    by_gb = most(1, ceiling(t.term("release_gb") / PARTITION_GB))
    needed = t.derive("partitions_by_gb", "partitions", by_gb, source=LIMITS).value
    partitions = 0.0
    while needed > partitions:
        partitions = needed
        needed = _serving_with(t, int(partitions))


def _serving_with(t: FigureTable, partitions: int) -> float:
    """Enter the RU/s for reads over *partitions*, of which the fullest must not be throttled.

    Return the partitions that a container of these RU/s has.
    """
    n = t.term
    t.enter("partitions", partitions, "partitions", "as many as follow from it: both agree")
    t.derive("skew", "", skew_of(t, n("partitions")), source=SKEW)
    t.derive("reads_plain_ru", "RU/s", n("reads_s") * n("mean_read_ru"))
    t.derive("reads_ru", "RU/s", n("reads_plain_ru") * n("skew") / n("ru_utilisation"))
    rounded = ceiling(n("reads_ru"), url.MANUAL_STEP)
    highest = t.derive("highest_ru", "RU/s", most(n("publish_ru_s"), rounded))
    lowest = ceiling(most(url.MANUAL_MIN, n("release_gb"), highest / 100), url.MANUAL_STEP)
    lowest = t.derive("least_ru", "RU/s", lowest, source=LIMITS)
    serve = t.derive("serve_ru", "RU/s", most(rounded, lowest))
    creation = least(url.MAX_RU, most(highest, serve))
    creation = t.derive("creation_ru", "RU/s", creation, source="what a container is created with")
    new = t.derive("new_partitions", "partitions", ceiling(creation / n("new_partition_ru")), source=PARTITIONS)
    enough = most(new, n("partitions_by_gb"), ceiling(least(url.MAX_RU, serve) / url.PARTITION_RU))
    return t.derive("partitions", "partitions", enough, source="they stay, whatever RU/s are taken away").value


def skew_of(t: FigureTable, partitions: Term) -> Term:
    """Return the RU/s of the fullest partition as a multiple of an even share."""
    return t.term("hot_user") * (partitions - 1) + 1


def _shares(t: FigureTable) -> None:
    """Enter what one partition has and gets, and the RU/s of all containers during a publish."""
    n = t.term
    share = t.derive("partition_ru", "RU/s", n("serve_ru") / n("partitions"))
    hot = t.derive("hot_key_ru", "RU/s", n("reads_s") * n("hot_user") * n("mean_read_ru"))
    t.derive("hot_key_load", "share", hot / share)
    t.derive("hot_partition_load", "share", n("reads_plain_ru") * n("skew") / n("partitions") / share)
    t.derive("containers", "containers", n("kept") + 3, source="live, kept, the next one, and control")
    together = n("serve_ru") + n("kept") * n("least_ru") + n("creation_ru") + CONTROL_RU
    source = "live, kept, draft and control, in the hours of a publish"
    t.derive("together_ru", "RU/s", together, source=source)


def _pods_of_region(t: FigureTable, inputs: Inputs) -> None:
    """Enter the pods of a region: as many as hold the requests at once, and have CPU for their rate."""
    n = t.term
    held = n("peak_region") * n("request_ms") / 1000
    little = ceiling(held / n("pod_utilisation") / n("pod_concurrency"))
    t.derive("pods_by_little", "pods", little, source="Little's law: requests in a pod = rate * time")
    capacity = n("pod_rps") if inputs.pod_rps is not None else term(1_000_000) * n("pod_cpus") / n("request_cpu_us")
    capacity = t.derive("pod_capacity", "requests/s", capacity)
    t.derive("pods_by_capacity", "pods", ceiling(n("peak_region") / capacity / n("pod_utilisation")))
    t.derive("pods_region", "pods", most(n("pods_by_little"), n("pods_by_capacity"), n("min_pods")))


def _pod_autoscaler(t: FigureTable, inputs: Inputs) -> None:
    """Enter the targets of a HorizontalPodAutoscaler (hpa): above them it adds pods."""
    n = t.term
    used = n("pod_utilisation")
    source = ""
    if inputs.zones > 1:
        used = used * (n("zones") - 1) / n("zones")
        source = "room for the load of a lost zone"
    used = t.derive("hpa_utilisation", "share", used, source=source)
    target = used * least(n("pod_capacity"), n("pod_concurrency") * 1000 / n("request_ms"))
    target = t.derive("hpa_pod_rps", "requests/s", target, source="the less by both; pods are added above it")
    source = "room for twice the busiest hour, and for one lost pod"
    t.derive("hpa_most_pods", "pods", most(n("min_pods"), ceiling(n("peak_region") * 2 / target) + 1), source=source)


def _pods_in_all(t: FigureTable, inputs: Inputs) -> None:
    """Enter the pods of all regions; with zones, those left carry the load of a lost one."""
    n = t.term
    pods = n("pods_region")
    if inputs.zones > 1:
        source = "the other zones carry what one may lose"
        pods = t.derive("pods_zone", "pods", ceiling(pods / (n("zones") - 1)), source=source) * n("zones")
    t.derive("pods", "pods", pods * n("regions"))
