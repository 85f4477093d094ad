"""Shipments: complete segments only, each once, through kills at any point; and reports on events."""

import json
import os
import sys
from pathlib import Path

import fsspec
import pytest

from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.serve.events.report import PositionCounts, report
from hotplate.serve.events.shipment import ship
from hotplate.stores.errors import WrittenByNewer
from hotplate.stores.event_log import LogSegment, line_of, segments
from tests.support.command import failed, hotplate, succeeded
from tests.support.event_log import ids, written


def segment(folder: Path, *names: str, **more: object) -> None:
    """Write a segment with events of these ids."""
    log = LogSegment(folder)
    for name in names:
        event = {"id": name, "time": 1.0, "type": "click", "user": "u", "items": ["i"], "role": "live"} | more
        log.append([line_of(json.dumps(event).encode())])
    log.close()


def killed_at(step: int, source: Path, target: Path) -> bool:
    """Ship in a process that dies at its step of that number; return whether it died."""
    pid = os.fork()
    if pid == 0:
        steps = iter(range(step))

        def die(*_: object) -> None:
            if next(steps, None) is None:
                os._exit(9)

        sys.addaudithook(die)
        ship(source, f"file://{target}")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def test_shipment_killed_at_any_point_loses_nothing_and_next_one_completes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    target = tmp_path / "target"
    source.mkdir()
    segment(source, "a", "b")
    segment(source, "c")
    if (worker := os.fork()) == 0:  # its segment is left open
        LogSegment(source).append([line_of(b'{"id":"d"}')])
        os._exit(9)
    os.waitpid(worker, 0)
    fsspec.filesystem("file")  # loaded modules take no steps
    contents = {path.name: path.read_bytes() for path in segments(source)}
    step = 0
    while killed_at(step, source, target):
        ids = [event["id"] for place in (source, target) if place.exists() for event in written(place)]
        assert set(ids) == {"a", "b", "c", "d"}
        contents |= {path.name: path.read_bytes() for path in segments(source)}
        assert all(path.read_bytes() == contents[path.name] for path in (segments(target) if target.exists() else ()))
        step += 1
    assert step > 10
    assert sorted(event["id"] for event in written(target)) == ["a", "b", "c", "d"]
    assert (segments(source), len(list(target.iterdir()))) == ([], 3)


def test_existing_segments_are_not_copied_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    target = tmp_path / "target"
    source.mkdir()
    segment(source, "a")
    (path,) = segments(source)
    content = path.read_bytes()
    assert ship(source, str(target)).segments == 1
    inode = (target / path.name).stat().st_ino
    path.write_bytes(content)
    assert (ship(source, str(target)).segments, segments(source)) == (1, [])
    assert (target / path.name).stat().st_ino == inode
    assert ship(source, str(target)).segments == 0
    segment(source, "b")
    assert ship(source, "memory://events").segments == report("memory://events").events == 1


def test_invalid_target_is_reported_and_nothing_is_removed(tmp_path: Path) -> None:
    segment(tmp_path, "a")
    (tmp_path / "file").touch()
    with pytest.raises(EventsFailed, match="failed at"):
        ship(tmp_path, str(tmp_path / "file"))
    with pytest.raises(ServiceMisused, match="cannot be opened"):
        ship(tmp_path, "nowhere://user:secret@host/events")
    with pytest.raises(ServiceMisused, match="no folder"):
        ship(tmp_path / "none", "memory://events")
    (tmp_path / "link").symlink_to(tmp_path)
    for itself in (tmp_path, tmp_path / "link", f"simplecache::file://{tmp_path}"):
        with pytest.raises(ServiceMisused, match="itself"):
            ship(tmp_path, str(itself))
    with pytest.raises(ServiceMisused, match="does not exist"):
        report(str(tmp_path / "none"))
    assert ids(tmp_path) == {"a"}


@pytest.fixture
def reported(tmp_path: Path) -> Path:
    """A folder with events of two releases, one of them twice, and a segment that is still written."""
    shown = [str(item) for item in range(12)]
    for release, role in (("r1", "live"), ("r2", "canary")):
        segment(tmp_path, f"{release}-s", type="impression", items=shown, position=1, release=release, role=role)
    segment(tmp_path, "c", position=2, release="r1")
    segment(tmp_path, "c", position=2, release="r1")
    segment(tmp_path, "d", position=12, release="r2", role="canary")
    segment(tmp_path, "e", "f", type="buy")
    return tmp_path


def test_report_counts_each_event_once_by_release_role_and_position(reported: Path) -> None:
    still_open = LogSegment(reported)
    still_open.append([b"{}"])
    counted = report(str(reported))
    assert counted.open_segments == 1
    assert (counted.segments, counted.events, counted.duplicates, counted.damaged) == (6, 6, 1, 0)
    assert counted.types == {"impression": 2, "click": 2, "buy": 2}
    assert [row for row in counted.rows if row.position == "all"] == [
        PositionCounts("r1", "live", "all", 12, 1), PositionCounts("r2", "canary", "all", 12, 1)
    ]  # fmt: skip
    positions = {(row.release, row.position): (row.impressions, row.clicks) for row in counted.rows}
    assert positions["r1", "2"] == (1, 1)
    assert positions["r2", "more"] == (2, 1)
    still_open.close()


def test_commands_report_and_ship_events(reported: Path) -> None:
    still_open = LogSegment(reported)
    still_open.append([b"{}"])
    assert "8.33%" in hotplate("events", "report", reported).stdout
    rows = json.loads(hotplate("events", "report", reported, "--json").stdout)["rows"]
    assert rows[0]["ctr"] == pytest.approx(1 / 12)
    assert rows[0]["interval"] == pytest.approx([0.0149, 0.3539], abs=1e-4)
    succeeded("events", "ship", reported, "--to", reported / "there")
    failed(hotplate("events", "report", reported / "none"), "does not exist", code=2)
    still_open.close()


def test_more_clicks_than_impressions_have_no_rate(tmp_path: Path) -> None:
    segment(tmp_path, "s", type="impression", release="r1")
    segment(tmp_path, "a", "b", release="r1")
    assert "%" not in hotplate("events", "report", tmp_path).stdout.replace("95 %", "")
    rows = json.loads(hotplate("events", "report", tmp_path, "--json").stdout)["rows"]
    assert [(row["clicks"], row["impressions"], row["ctr"]) for row in rows] == [(2, 1, None)] * 2
    segment(tmp_path, "t", type="impression", release="r1")
    assert report(str(tmp_path)).rows[0].ctr == 1.0


def test_report_of_newer_events_asks_for_an_upgrade(tmp_path: Path) -> None:
    segment(tmp_path, "a", role="shadow")
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        report(str(tmp_path))
    failed(hotplate("events", "report", tmp_path), "upgrade hotplate", code=1)


def test_reports_and_shipments_refuse_segments_of_a_newer_format(tmp_path: Path) -> None:
    segment(tmp_path, "a")
    (path,) = segments(tmp_path)
    path.rename(tmp_path / path.name.replace(".events.zst", ".events2.zst"))
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        report(str(tmp_path))
    with pytest.raises(WrittenByNewer, match="upgrade hotplate"):
        ship(tmp_path, "memory://newer")
