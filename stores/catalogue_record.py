"""The record of a catalogue: its JSON, formats and checksum."""

from dataclasses import asdict, astuple, replace

import msgspec
import orjson
from msgspec import Struct
from xxhash import xxh3_64_hexdigest

from hotplate.stores.catalogue import Catalogue, Release, ReleaseId, State
from hotplate.stores.encoding import RecordFormat
from hotplate.stores.errors import CatalogueUnreadable, ReleaseNotFound

# Formats of the record. A catalogue is written in the oldest one that can express it (`format_of`), so earlier versions
# refuse, with "upgrade hotplate", only what they would misread. Whatever changes the meaning of a record, its checksum
# included, takes the next number.
#   2    releases and a canary
#   4    the same with an experiment, a refused release, or erased users
FORMAT_PLAIN = 2
FORMAT = 4
READ = (FORMAT_PLAIN, FORMAT)


class _Record(Struct):
    live: ReleaseId | None
    entries: tuple[Release, ...]
    checksum: str


def format_of(catalogue: Catalogue) -> int:
    """Return the format in which a catalogue is written."""
    has_more = catalogue.experiment is not None or catalogue.erased is not None
    return FORMAT if has_more or any(entry.refused_by for entry in catalogue.releases) else FORMAT_PLAIN


def dump(catalogue: Catalogue) -> bytes:
    """Encode a catalogue for storage: JSON in lines, in the oldest format that has its fields."""
    return orjson.dumps(
        {
            "format": format_of(catalogue),
            "store_id": catalogue.store_id,
            "generation": catalogue.generation,
            "token": catalogue.token,
            "live": catalogue.live,
            "canary": catalogue.canary,
            "entries": catalogue.releases,
            "checksum": _checksum(catalogue),
            # hotplate 0.3 refuses a record of erased users without an incarnation, which it leaves empty.
            **({} if catalogue.erased is None else {"erased": {"incarnation": "", **asdict(catalogue.erased)}}),
            **({} if catalogue.experiment is None else {"experiment": catalogue.experiment}),
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def parse(record: bytes, *, now: float, where: str) -> Catalogue:
    """Decode a stored catalogue, read at *now* by the store's clock; *where* names it in errors.

    Raises CatalogueUnreadable if it is damaged or contradicts itself, with the record, or if its format is newer or no
    longer read.
    """

    def unreadable(reason: str) -> CatalogueUnreadable:
        advice = "`hotplate store rebuild` writes a new one from the releases that the store holds"
        return CatalogueUnreadable(f"the catalogue at {where} {reason}; {advice}", record, now)

    try:
        written_format = msgspec.json.decode(record, type=RecordFormat).format  # others may have other fields
        if written_format > FORMAT:
            raise CatalogueUnreadable(
                f"the catalogue at {where} was written by a newer hotplate: it has format {written_format}, and this "
                f"one reads {FORMAT}; upgrade hotplate, services before publishers"
            )
        if written_format not in READ:
            raise CatalogueUnreadable(
                f"the catalogue at {where} has format {written_format}, which this hotplate reads no more; publish "
                f"into a new store"
            )
        fields = msgspec.json.decode(record, type=_Record)
        stored = msgspec.json.decode(record, type=Catalogue)
        catalogue = replace(stored, releases=fields.entries, now=now, primary=True)
        if _is_contradictory(catalogue, live=fields.live):
            raise unreadable("contradicts itself")
        if fields.checksum != _checksum(catalogue):
            raise unreadable("is damaged: its checksum is wrong")
    except (msgspec.MsgspecError, ValueError, RecursionError, ReleaseNotFound) as error:
        raise unreadable(f"cannot be read: {error}") from error
    return catalogue


def _is_contradictory(catalogue: Catalogue, *, live: ReleaseId | None) -> bool:
    """Return whether fields of a record exclude each other; *live* is its field, besides the states of its releases.

    Raises ReleaseNotFound if the canary is not among the releases.
    """
    canary = catalogue.canary_entry  # raises ReleaseNotFound
    live_ids = [entry.id for entry in catalogue.releases if entry.state is State.LIVE]
    expected_live_ids = [] if live is None else [live]
    if live_ids != expected_live_ids or not 1 <= catalogue.generation < 1 << 63:
        return True

    incarnations = {entry.incarnation for entry in catalogue.releases}
    if len(incarnations) != len(catalogue.releases):
        return True

    if canary is None:
        return catalogue.running is not None  # arm B of an experiment is the canary
    # A canary is compared with a live release, and is another, committed one.
    return not live_ids or canary.state in (State.DRAFT, State.LIVE)


def _checksum(catalogue: Catalogue) -> str:
    """Return the checksum over the fields of a catalogue, in hexadecimal digits.

    Over values, not stored bytes: a store may reorder fields and write 1.0 as 1. Fields that earlier versions lacked
    count only if set, so that the checksums of their catalogues stay valid.
    """
    fields = list[object](catalogue.version)
    canary = catalogue.canary
    fields.append(None if canary is None else (canary.release, float(canary.percent), canary.salt))
    fields.append([_checked_fields(entry) for entry in catalogue.releases])
    if catalogue.erased is not None:
        fields.append(astuple(catalogue.erased))
    if catalogue.experiment is not None:
        fields.append(astuple(catalogue.experiment))
    return xxh3_64_hexdigest(orjson.dumps(fields))


def _checked_fields(entry: Release) -> list[object]:
    fields: list[object] = [
        entry.id,
        entry.incarnation,
        entry.state,
        float(entry.created_at),
        entry.writer,
        None if entry.superseded_at is None else float(entry.superseded_at),
        None if entry.lease_until is None else float(entry.lease_until),
    ]
    if entry.refused_by:
        fields.append(entry.refused_by)
    return fields
