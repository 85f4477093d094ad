"""What Cosmos DB takes: charges, RU/s for reads and for publishing, containers, physical partitions and storage."""

from dataclasses import dataclass
from math import ceil

from bench.planner.demand import needed_ru, skew_factor, write_charge
from bench.planner.figures import Book, up
from bench.planner.inputs import Inputs
from bench.planner.load import Load
from stores.cosmos.charges import Charges
from stores.cosmos.throughput import (
    AUTOSCALE_MIN,
    AUTOSCALE_STEP,
    MANUAL_MIN,
    MANUAL_STEP,
    MAX_RU,
    PARTITION_RU,
    RU_AT_BIRTH,
    Throughput,
    minimum_ru,
)
from stores.prices import HOURS_A_MONTH

GB = 1000**3
PARTITION_GB = 50
CONTROL_RU = MANUAL_MIN
DOUBLED = ("bounded", "strong")
CHARGES = "the file of charges, ours or that of --charges: a source for each coefficient"
LIMITS = "https://learn.microsoft.com/azure/cosmos-db/concepts-limits"
PARTITIONS = "https://learn.microsoft.com/azure/cosmos-db/scaling-provisioned-throughput-best-practices"


@dataclass(frozen=True, slots=True)
class Serving:
    """What the container that is read needs, were it of so many partitions; all but those in RU/s."""

    partitions: int
    partitions_made: int
    reads_ru: float
    highest_ru: int
    least_ru: int
    ru: int
    born_ru: int


@dataclass(frozen=True, slots=True)
class Need:
    """What the containers of one region must be able to do; RU/s are rounded to what can be provisioned."""

    read_ru: float
    reads_ru: float
    """RU/s of the reads in the busiest hour, headroom included."""

    publish_total_ru: float
    publish_ru: int
    publish_hours: float
    publishes: float
    serve_ru: int
    born_ru: int
    """RU/s of a release's container while it is written: what serving needs, too, for it is the next to serve."""

    kept_ru: int
    release_bytes: float
    stored_gb: float

    @property
    def in_place_ru(self) -> int:
        """RU/s of the one container that is read and written at the same time."""
        return max(self.serve_ru, up(self.reads_ru + self.publish_ru, MANUAL_STEP))


def work_out_cosmos(book: Book, inputs: Inputs, load: Load, charges: Charges) -> Need:
    """Work out what is to be provisioned, whatever it costs."""
    item_bytes = _value(book, "item_bytes")
    mean_read = _charges(book, inputs, charges, item_bytes)
    total, reserve, hours = _publishing(book, inputs, load)
    release_bytes = load.rows * item_bytes
    held = 1 + inputs.kept + 1 if inputs.publishing == "release" else 1
    book.work("release_gb", release_bytes / GB, "GB", f"rows * item_bytes / {GB}")
    copies = "1 + kept + 1" if inputs.publishing == "release" else "1"
    book.work("copies", held, "releases", copies, source="live, kept and, while it is written, the next")
    stored_gb = book.work("stored_gb", release_bytes / GB * held, "GB", "release_gb * copies")
    serving = _serving(book, inputs, load, mean_read_ru=mean_read, gb=release_bytes / GB, reserve=reserve)
    _hot_key(book, load, mean_read, serving)
    publishes = book.work(
        "publishes", HOURS_A_MONTH / inputs.refresh_hours, "a month", f"{HOURS_A_MONTH} / refresh_hours"
    )
    need = Need(
        mean_read, serving.reads_ru, total, reserve, hours, publishes, serving.ru, serving.born_ru, serving.least_ru,
        release_bytes, stored_gb,
    )  # fmt: skip
    _together(book, inputs, need)
    return need


def _charges(book: Book, inputs: Inputs, charges: Charges, item_bytes: float) -> float:
    """Work out the charges; returns that of a mean read, those for users without a list included."""
    strong = inputs.consistency in DOUBLED
    if inputs.read_ru is not None:
        read = book.work("point_read_ru", inputs.read_ru, "RU", "read_ru")
    else:
        read = charges.read(round(item_bytes), strong=strong)
        formula = f"charge of a point read of item_bytes{', doubled for its consistency' if strong else ''}"
        book.work("point_read_ru", read, "RU", formula, source=CHARGES)
    missing = charges.not_found(strong=strong)
    book.work("missed_read_ru", missing, "RU", "charge of a read that finds nothing, by consistency", source=CHARGES)
    unknown = inputs.unknown_share
    formula = "(1 - unknown_share) * point_read_ru + unknown_share * missed_read_ru"
    mean = book.work("mean_read_ru", (1 - unknown) * read + unknown * missing, "RU", formula)
    terms = 0 if inputs.indexing == "none" else inputs.indexed_terms
    if inputs.write_ru is not None:
        book.work("list_write_ru", inputs.write_ru, "RU", "write_ru")
    else:
        replaced = inputs.publishing == "in-place"
        what = "replacing" if replaced else "creating"
        indexed = "indexed_terms" if terms else "no terms, as indexing says"
        written = write_charge(charges, item_bytes, terms=terms, replaced=replaced)
        formula = f"charge of {what} an item of item_bytes with {indexed}, by publishing"
        book.work("list_write_ru", written, "RU", formula, source=CHARGES)
    return mean


def _publishing(book: Book, inputs: Inputs, load: Load) -> tuple[float, int, float]:
    """Work out RU in all, RU/s reserved, and hours that one publish takes."""
    write = _value(book, "list_write_ru")
    total = book.work("publish_total_ru", load.rows * write, "RU", "rows * list_write_ru")
    if inputs.publish_ru is None:
        asked, formula = total / inputs.window_hours / 3600, "publish_total_ru / (window_hours * 3600)"
    else:
        asked, formula = float(inputs.publish_ru), "publish_ru"
    least = MANUAL_MIN if inputs.publishing == "release" else MANUAL_STEP
    reserve = min(MAX_RU, max(least, up(asked, MANUAL_STEP)))
    book.work("publish_ru_s", reserve, "RU/s", f"min({MAX_RU}, max({least}, up({formula}, {MANUAL_STEP})))")
    hours = book.work("publish_hours", total / reserve / 3600, "hours", "publish_total_ru / publish_ru_s / 3600")
    return total, reserve, hours


def _serving(book: Book, inputs: Inputs, load: Load, *, mean_read_ru: float, gb: float, reserve: int) -> Serving:
    """Work out the RU/s and the physical partitions of the container that is read.

    What the fullest partition needs depends on how many there are, and how many there are on what it needs, so this
    goes up until both agree.
    """
    by_gb = max(1, ceil(gb / PARTITION_GB))
    found = _serving_of(inputs, load, by_gb, mean_read_ru=mean_read_ru, gb=gb, reserve=reserve)
    while found.partitions_made > found.partitions:
        found = _serving_of(inputs, load, found.partitions_made, mean_read_ru=mean_read_ru, gb=gb, reserve=reserve)
    in_place = inputs.publishing == "in-place"
    wanted = f"reads_ru + publish_ru_s, {MANUAL_STEP}" if in_place else f"reads_ru, {MANUAL_STEP}"
    born = f"max(have_ru, up({wanted}))" if in_place and inputs.have_ru else f"up({wanted})"
    book.work("partitions_by_gb", by_gb, "partitions", f"max(1, ceil(release_gb / {PARTITION_GB}))", source=LIMITS)
    book.give("partitions", found.partitions, "partitions", "as many as they come to, so that both agree")
    book.work("skew", skew_factor(load.hot_share, found.partitions), "", "1 + hot_read * (partitions - 1)")
    plain = needed_ru(load.peak, mean_read_ru, hit_rate=load.hit_rate)
    book.work("reads_plain_ru", plain, "RU/s", "reads_s * mean_read_ru")
    book.work("reads_ru", found.reads_ru, "RU/s", "reads_plain_ru * skew / ru_utilisation")
    book.work("highest_ru", found.highest_ru, "RU/s", born if in_place else f"max(publish_ru_s, {born})")
    least = f"up(max({MANUAL_MIN}, release_gb, highest_ru / 100), {MANUAL_STEP})"
    book.work("least_ru", found.least_ru, "RU/s", least, source=LIMITS)
    book.work("serve_ru", found.ru, "RU/s", f"max(up(reads_ru, {MANUAL_STEP}), least_ru)")
    book.work(
        "born_ru",
        found.born_ru,
        "RU/s",
        f"min({MAX_RU}, max(highest_ru, serve_ru))",
        source="what a container is made with",
    )
    made = f"ceil(born_ru / {RU_AT_BIRTH})"
    book.work("partitions_born", Throughput(found.born_ru).partitions_at_birth, "partitions", made, source=PARTITIONS)
    formula = f"max(partitions_born, partitions_by_gb, ceil(min({MAX_RU}, serve_ru) / {PARTITION_RU}))"
    book.work("partitions", found.partitions, "partitions", formula, source="they stay, whatever RU/s are taken away")
    return found


def _serving_of(
    inputs: Inputs, load: Load, partitions: int, *, mean_read_ru: float, gb: float, reserve: int
) -> Serving:
    """Work out what serving takes from so many partitions, and how many a container that can give it has."""
    needed = needed_ru(load.peak, mean_read_ru, hit_rate=load.hit_rate, hot_share=load.hot_share, partitions=partitions)
    wanted = needed / inputs.ru_utilisation
    if inputs.publishing == "in-place":
        highest = max(inputs.have_ru or 0, up(wanted + reserve, MANUAL_STEP))
    else:
        highest = max(reserve, up(wanted, MANUAL_STEP))
    least = minimum_ru(highest, int(gb * GB), autoscale=False)
    serve = max(up(wanted, MANUAL_STEP), least)
    born = min(MAX_RU, max(highest, serve))
    made = max(Throughput(born).partitions_at_birth, Throughput(min(MAX_RU, serve)).partitions_needed)
    return Serving(partitions, max(partitions, made), wanted, highest, least, serve, born)


def _hot_key(book: Book, load: Load, mean_read: float, serving: Serving) -> None:
    """Hold the hottest key, and the partition that it lies in, against a partition's share."""
    share = book.work("partition_ru", serving.ru / serving.partitions, "RU/s", "serve_ru / partitions")
    hot = load.peak * (1 - load.hit_rate) * load.hot_share * mean_read
    book.work("hot_key_ru", hot, "RU/s", "reads_s * hot_read * mean_read_ru")
    book.work("hot_key_load", hot / share, "share", "hot_key_ru / partition_ru")
    rest = load.peak * (1 - load.hit_rate) * (1 - load.hot_share) * mean_read / serving.partitions
    formula = "(hot_key_ru + reads_s * (1 - hot_read) * mean_read_ru / partitions) / partition_ru"
    book.work("hot_partition_load", (hot + rest) / share, "share", formula)


def _together(book: Book, inputs: Inputs, need: Need) -> None:
    """Work out what is provisioned in all while a release is published."""
    if inputs.publishing == "in-place":
        book.work("containers", 1, "containers", "1")
        formula = f"max(serve_ru, up(reads_ru + publish_ru_s, {MANUAL_STEP}))"
        book.work("together_ru", need.in_place_ru, "RU/s", formula)
        return
    book.work(
        "containers",
        1 + inputs.kept + 1 + 1,
        "containers",
        "1 + kept + 1 + 1",
        source="live, kept, the next one, and control",
    )
    total = need.serve_ru + inputs.kept * need.kept_ru + need.born_ru + CONTROL_RU
    formula = f"serve_ru + kept * least_ru + born_ru + {CONTROL_RU}"
    book.work("together_ru", total, "RU/s", formula, source="live, kept, draft and control, in the hours of a publish")


def autoscale_top(wanted: float, highest: int, release_bytes: float) -> int:
    """Return the top of an autoscale range that carries *wanted* RU/s and may be set after *highest*."""
    return max(up(wanted, AUTOSCALE_STEP), AUTOSCALE_MIN, minimum_ru(highest, int(release_bytes), autoscale=True))


def _value(book: Book, name: str) -> float:
    return float(book.figures()[name].value or 0)
