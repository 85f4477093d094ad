"""Made-up lists: as long as their shape says, and as different as real ones."""

import pytest

from hotplate.bench.measure.lists import DISTINCT, Shape
from hotplate.stores.encoding import OFFSET_BYTES, decode


@pytest.mark.parametrize("items", [1, 20])
def test_lists_are_as_long_as_the_shape_states_and_as_different_as_real_ones(items: int) -> None:
    shape = Shape(10, items)
    values = shape.values()
    assert items == 1 or len(set(values)) == DISTINCT
    assert sum(map(len, values)) / DISTINCT - OFFSET_BYTES == pytest.approx(shape.value_bytes, rel=0.05)
    for decoded in (decode(body[OFFSET_BYTES:]) for body in values[:50]):
        assert len({item["id"] for item in decoded}) == items
        assert [item["score"] for item in decoded] == sorted((item["score"] for item in decoded), reverse=True)
