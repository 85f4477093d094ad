"""Made-up lists: as long as their shape says, and as different as real ones."""

import pytest

from hotplate.bench.lists import DISTINCT, Shape
from hotplate.stores.encoding import OFFSET_BYTES, decode


@pytest.mark.parametrize("shape", [Shape(10, items=1), Shape(10, items=20)])
def test_a_shape_has_the_bytes_of_its_values_and_rows(shape: Shape) -> None:
    values = shape.values()
    assert {len(value) - OFFSET_BYTES for value in values} == {shape.value_bytes}
    assert len(set(values)) == DISTINCT
    rows = [row for batch in shape.batches(values) for row in batch]
    assert len(rows) == shape.plan.rows
    assert sum(len(key) + len(value) - OFFSET_BYTES for key, value in rows) == pytest.approx(
        shape.plan.payload_bytes, abs=13
    )
    assert [row.key for row in rows] == sorted(row.key for row in rows)
    items = decode(rows[-1].value[OFFSET_BYTES:])
    assert len(items) == shape.items


def test_drawn_lists_are_as_long_as_the_shape_states_and_as_different_as_real_ones() -> None:
    shape = Shape(10, items=20)
    drawn = shape.drawn()
    assert len(set(drawn)) == DISTINCT
    assert sum(map(len, drawn)) / DISTINCT == pytest.approx(shape.value_bytes, rel=0.02)
    for items in (decode(body[OFFSET_BYTES:]) for body in drawn[:50]):
        assert len({item["id"] for item in items}) == shape.items
        assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)
