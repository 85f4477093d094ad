"""How many RU/s a load needs: the arithmetic that the plan uses, and that a sweep of an emulation is held against."""

from stores.cosmos.charges import Charges


def skew_factor(hot_share: float, partitions: int) -> float:
    """Return by how much the fullest partition exceeds an even share, so that all must be as large as it needs.

    Throughput is split evenly over physical partitions. One holds the hottest key and its share of all others.
    """
    return 1 + hot_share * (partitions - 1)


def needed_ru(
    reads_s: float,
    read_ru: float,
    *,
    hit_rate: float = 0.0,
    hot_share: float = 0.0,
    partitions: int = 1,
    writes_s: float = 0.0,
    write_ru: float = 0.0,
) -> float:
    """Return the RU/s that a container spends, were it as large as its fullest partition wants it.

    *reads_s* and *writes_s* a second, *hit_rate* the part of the reads that a cache answers, *hot_share* the part of
    those that reach the store which asks for one key. Writes are spread evenly. Nothing is added for headroom.
    """
    reads = reads_s * (1 - hit_rate) * read_ru * skew_factor(hot_share, partitions)
    return reads + writes_s * write_ru


def predict_ru(
    charges: Charges,
    reads_s: float,
    item_bytes: float,
    *,
    strong: bool = False,
    hit_rate: float = 0.0,
    hot_share: float = 0.0,
    partitions: int = 1,
    writes_s: float = 0.0,
    terms: int = 0,
    replaced: bool = False,
) -> float:
    """Return the RU/s that reads and writes of items of *item_bytes*, as stored, need by the documented charges.

    *strong* for strong or bounded staleness; *terms* are indexed ones, *replaced* where items are written over.
    """
    return needed_ru(
        reads_s,
        charges.read(round(item_bytes), strong=strong),
        hit_rate=hit_rate,
        hot_share=hot_share,
        partitions=partitions,
        writes_s=writes_s,
        write_ru=write_charge(charges, item_bytes, terms=terms, replaced=replaced),
    )


def write_charge(charges: Charges, item_bytes: float, *, terms: int = 0, replaced: bool = False) -> float:
    """Return the charge of writing one list; where it replaces another, all of its terms change."""
    size = round(item_bytes)
    return charges.replace(size, size, terms, terms) if replaced else charges.create(size, terms)
