"""Groups of users: by the segment that most of their rows name, and the largest groups alone."""

from pathlib import Path

import polars as pl

from offline.evaluate.segments import by_column
from offline.input.interactions import read_interactions


def test_a_user_is_in_the_segment_that_most_rows_name_the_first_of_equals(tmp_path: Path) -> None:
    rows = ["u,a,north", "u,b,south", "u,c,south", "v,a,south", "v,b,north", "w,a,", "x,a,west"]
    (tmp_path / "a.csv").write_text("user,item,segment\n" + "\n".join(rows))
    memberships = read_interactions(tmp_path / "a.csv").memberships
    assert memberships is not None
    assert memberships.sort("user").rows() == [("u", "south"), ("v", "north"), ("x", "west")]
    groups = by_column(memberships, ["u", "v", "w"])
    assert {name: rows.tolist() for name, rows in groups.items()} == {"north": [1], "south": [0]}


def test_only_the_largest_groups_are_reported() -> None:
    users = [f"{number:03}" for number in range(60)]
    names = [f"s{number % 30:02}" if number < 50 else "big" for number in range(60)]
    groups = by_column(pl.DataFrame({"user": users, "segment": names}), users)
    assert len(groups) == 20
    assert next(iter(groups)) == "big"
    assert groups["big"].tolist() == list(range(50, 60))
