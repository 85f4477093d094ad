"""Segments of events as training data: weighed by type, duplicates removed, alone and with other files."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hotplate.offline.errors import DataError, SettingError
from hotplate.offline.input.files import find_files
from hotplate.offline.input.interactions import read_interactions
from hotplate.offline.input.recorded_events import read_events
from hotplate.offline.options import Format
from hotplate.stores.event_log import LogSegment, line_of, segments
from tests.support.interactions import pairs_of, write

WEIGHTS = {"click": 1.0, "buy": 5.0}
Event = dict[str, object]


def event(number: int, kind: str, user: str, *items: str, **more: object) -> Event:
    return {
        "id": str(number),
        "time": 1.79e9 + number,
        "type": kind,
        "user": user,
        "items": items,
        "role": "live",
    } | more


def segment(folder: Path, *events: Event) -> Path:
    folder.mkdir(exist_ok=True)
    log = LogSegment(folder)
    log.append([line_of(json.dumps(event).encode()) for event in events])
    log.close()
    return segments(folder)[-1]


EVENTS = (
    event(1, "impression", "u1", "a", "b", "c", release="r1", position=1),
    event(2, "click", "u1", "b", release="r1", position=2),
    event(3, "click", "u2", "a", role="canary"),
    event(4, "buy", "u2", "a", "c"),
)
PAIRS = [("u1", "b", 1.0), ("u2", "a", 6.0), ("u2", "c", 5.0)]


def test_events_are_weighed_by_type_and_duplicates_count_once(tmp_path: Path) -> None:
    segment(tmp_path, *EVENTS)
    segment(tmp_path, *EVENTS[2:])
    (tmp_path / ".20261121T000000Z-00000000-00000000.events.zst").touch()  # one that is being written
    read = read_interactions(tmp_path, event_weights=WEIGHTS)
    assert pairs_of(read) == PAIRS
    assert (read.rows, read.left_out) == (7, {"unknown event": 3})
    assert read.notes[0] == "2 events left out: sent again under the same id"
    assert read.notes[1].startswith("the most frequent events without a weight are 'impression'")
    assert read.time_range is not None
    assert read.time_range[0] == datetime.fromtimestamp(1.79e9 + 2, UTC).replace(tzinfo=None)


def test_events_without_a_weight_are_counted_but_not_kept(tmp_path: Path) -> None:
    for number in range(3):
        segment(tmp_path, *EVENTS, event(9 + number, "impression", "u3", "a", "b"))
    files = find_files(tmp_path)
    events = read_events(files, Format(), WEIGHTS)
    assert events.unweighted == {"impression": 3 * 5}
    assert sorted(events.table.frame.collect().get_column("event")) == ["buy", "buy", "click", "click"]
    assert read_interactions(tmp_path, event_weights=WEIGHTS).left_out == {"unknown event": 3 * 5}
    with pytest.raises(
        DataError, match=r"of the 27 rows of .*: 27 unknown event \(most often 'impression', 'buy', 'click'\)"
    ):
        read_interactions(tmp_path, event_weights={"like": 1.0})


def test_damaged_segment_gives_its_intact_events_and_a_note(tmp_path: Path) -> None:
    path = segment(tmp_path, *EVENTS)
    path.write_bytes(path.read_bytes() + path.read_bytes()[:-5] + path.read_bytes())
    read = read_interactions(path, event_weights=WEIGHTS)
    assert pairs_of(read) == PAIRS
    assert "1 damaged event left out" in read.notes[1]


def test_events_filter_by_role_and_need_weights(tmp_path: Path) -> None:
    path = segment(tmp_path, *EVENTS, event(5, "click", "u3", "a"))
    assert ("u2", "a", 5.0) in pairs_of(read_interactions(path, event_weights=WEIGHTS, where=["role!=canary"]))
    with pytest.raises(SettingError, match="--event-weights click=1,buy=5"):
        read_interactions(path)


@pytest.mark.parametrize(
    ("log", "where", "expected"),
    [
        ("user,item\nu1,b\nu9,c\n", [], [("u1", "b", 2.0), *PAIRS[1:], ("u9", "c", 1.0)]),
        ("customer,sku,weight\nu1,b,2.5\n", [], [("u1", "b", 3.5), *PAIRS[1:]]),
        ("user,item,action\nu1,b,buy\nu1,b,look\n", [], [("u1", "b", 6.0), *PAIRS[1:]]),
        ("user,item,ts,title,segment\nu1,b,2026-01-01,Bee,north\n", [], [("u1", "b", 2.0), *PAIRS[1:]]),
        ("user,item,quantity\nu1,b,2\nu9,c,0\n", ["quantity>0"], [("u1", "b", 2.0), *PAIRS[1:]]),
        ("User,Item\nu1,b\nu9,c\n", ["User!=u2"], [("u1", "b", 2.0), ("u9", "c", 1.0)]),
    ],
    ids=[
        "pairs",
        "weights",
        "events of its own",
        "times, titles and segments",
        "a filter of the log alone",
        "a filter of both in another case",
    ],
)
def test_events_are_combined_with_a_log_of_any_columns(
    tmp_path: Path, log: str, where: list[str], expected: list[tuple[str, str, float]]
) -> None:
    segment(tmp_path / "events", *EVENTS)
    file = write(tmp_path / "log.csv", log)
    read = read_interactions(file, tmp_path / "events", event_weights=WEIGHTS, where=where)
    assert pairs_of(read) == expected
    assert read.left_out["unknown event"] >= 3
    assert read.titles == ({"b": "Bee"} if "Bee" in log else {})


def test_bad_times_of_a_log_are_shown_also_with_events(tmp_path: Path) -> None:
    segment(tmp_path / "events", *EVENTS)
    log = write(tmp_path / "log.csv", "user,item,ts\nu1,b,2026-01-01\nu2,b,soon\n")
    read = read_interactions(log, tmp_path / "events", event_weights=WEIGHTS, form=Format(max_bad_rows=0.5))
    assert f"{log}, row 3, column 'ts': 'soon' is not a time" in read.notes[0]


def test_unknown_events_are_named_also_with_a_log_if_nothing_is_left(tmp_path: Path) -> None:
    segment(tmp_path / "events", *EVENTS)
    log = write(tmp_path / "log.csv", "user,item\n,b\n")
    with pytest.raises(DataError, match=r"1 no user, 7 unknown event \(most often "):
        read_interactions(log, tmp_path / "events", event_weights={"cart": 1.0})
