"""The built-in sample: the same for the same seed, long-tailed, readable, and worth personal lists."""

from hotplate.offline.input.sample import sample


def test_a_sample_has_distinct_readable_titles_and_a_long_tail() -> None:
    frame = sample()
    assert frame.columns == ["user", "item", "weight", "title", "segment", "time"]
    assert frame.get_column("user").n_unique() == 2000
    items = frame.get_column("item").n_unique()
    assert 590 <= items <= 600
    assert frame.select("item", "title").unique().height == items == frame.get_column("title").n_unique()
    assert frame.get_column("title").str.contains(r"^[A-Z][a-z]+ [A-Z][a-z]+ [A-Z][a-z]+$").all()
    assert frame.select("user", "item").is_unique().all()
    assert frame.select("user", "segment").unique().height == 2000
    counts = frame.get_column("item").value_counts().get_column("count").sort(descending=True)
    assert counts.head(60).sum() > 0.25 * frame.height
    assert (frame.get_column("weight") >= 1).all()
    assert frame.get_column("time").is_sorted()
