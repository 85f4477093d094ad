import pytest
from hdrh.histogram import HdrHistogram

from hotplate.bench.loadgen.result import HIGHEST_US, Histogram


def test_histograms_add_up_and_survive_being_written() -> None:
    one, two = Histogram.of([0.001] * 10), Histogram.of([0.002] * 30)
    both = Histogram.merged([one, two])
    assert HdrHistogram.decode(both.encoded).get_total_count() == 40
    assert both.count == 40
    assert [both.percentile_us(25), both.percentile_us(30)] == pytest.approx([1000, 2000], rel=0.001)
    assert [round(percent) for percent, _ in both.spectrum()] == [25, 100]


def test_times_outside_the_scale_count_at_its_end_and_nothing_is_nothing() -> None:
    assert Histogram.of([100.0]).max_us == pytest.approx(HIGHEST_US, rel=0.001)
    assert Histogram.of([0.0]).count == 1
    empty = Histogram.of([])
    assert (empty.count, empty.max_us, empty.percentile_us(50)) == (0, 0, 0)
