"""The item with the state of a release: its fields, and the names of the series of batches."""

import pytest

from hotplate.stores.cosmos.release_state import DRAFT, ReleaseState
from hotplate.stores.errors import ReleaseCorrupt

FIRST = ReleaseState(DRAFT, "one")
SECOND = FIRST.with_part(7).with_part(2).taken_over_by("two", {"rows": 3, "metas": 0})


def test_item_has_the_fields_that_differ_from_their_defaults() -> None:
    assert FIRST.item() == {"id": "state", "state": "draft", "writer": "one"}
    assert SECOND.marked("erasure").item() == {
        "id": "state",
        "state": "draft",
        "writer": "two",
        "claims": 1,
        "former": {"rows": 3, "metas": 0},
        "parts": (2, 7),
        "dropping": ("erasure",),
    }
    assert ReleaseState.of(SECOND.item()) == SECOND


def test_replacing_an_item_keeps_its_unknown_fields() -> None:
    stored = FIRST.item() | {"later": [1]}
    assert ReleaseState.of(stored) == FIRST
    assert FIRST.with_part(1).item(stored) == stored | {"parts": (1,)}


@pytest.mark.parametrize("fields", [{"state": 1}, {"claims": "1"}, {"former": [1]}, {"parts": "1"}])
def test_item_with_a_field_of_another_type_is_corrupt(fields: dict[str, object]) -> None:
    with pytest.raises(ReleaseCorrupt, match="'state' of a release was not written by hotplate"):
        ReleaseState.of(FIRST.item() | fields)


def test_each_writer_has_series_of_its_own() -> None:
    assert FIRST.series_names == ["rows", "metas"]
    assert SECOND.series_names == ["rows_1", "rows-2_1", "rows-7_1", "metas_1"]
    assert SECOND.taken_over_by("three", {}).series_of_all_writers("rows-2") == ["rows-2_2", "rows-2_1", "rows-2"]
