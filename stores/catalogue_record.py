"""The catalogue as it is stored: JSON that an operator can read, checked when it is read back."""

from typing import Any, TypeVar

import orjson

from stores.catalogue import Catalogue, Release, ReleaseId, State
from stores.errors import CatalogueUnreadable

T = TypeVar("T")


def dump(catalogue: Catalogue) -> bytes:
    """Render a catalogue for storage; `now` stays behind."""
    return orjson.dumps(
        {
            "store_id": catalogue.store_id,
            "generation": catalogue.generation,
            "token": catalogue.token,
            "live": catalogue.live,
            "releases": [
                {
                    "id": entry.id,
                    "state": entry.state,
                    "created_at": entry.created_at,
                    "superseded_at": entry.superseded_at,
                    "lease_until": entry.lease_until,
                }
                for entry in catalogue.releases
            ],
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def parse(record: bytes, *, now: float, where: str) -> Catalogue:
    """Read a stored catalogue back; CatalogueUnreadable, naming *where*, for anything that is not one."""
    try:
        fields = orjson.loads(record)
        catalogue = Catalogue(
            store_id=_typed(fields["store_id"], str),
            generation=_typed(fields["generation"], int),
            token=_typed(fields["token"], str),
            releases=tuple(_release(entry) for entry in fields["releases"]),
            now=now,
        )
        stated = fields["live"]
    except (ValueError, KeyError, TypeError) as error:
        raise CatalogueUnreadable(
            f"the catalogue at {where} cannot be read ({error!r}); restore it, or publish into a new store"
        ) from error
    living = [entry.id for entry in catalogue.releases if entry.state is State.LIVE]
    if catalogue.generation < 1 or living != ([stated] if stated else []):
        raise CatalogueUnreadable(
            f"the catalogue at {where} contradicts itself; restore it, or publish into a new store"
        )
    return catalogue


def _release(fields: dict[str, Any]) -> Release:
    return Release(
        id=ReleaseId(_typed(fields["id"], str)),
        state=State(fields["state"]),
        created_at=float(fields["created_at"]),
        superseded_at=_optional_time(fields["superseded_at"]),
        lease_until=_optional_time(fields["lease_until"]),
    )


def _optional_time(value: float | None) -> float | None:
    return None if value is None else float(value)


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value
