"""Segments of events: truncated and damaged ones give exactly the intact frames."""

import fcntl
import json
import os
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.stores import event_log
from hotplate.stores.event_log import LogSegment, SegmentReader, line_of, recover, segments

COMMITS = st.lists(st.lists(st.text(max_size=20), min_size=1, max_size=4), min_size=1, max_size=6)


def commit(segment: LogSegment, texts: list[str]) -> list[str]:
    segment.append([line_of(json.dumps(text).encode()) for text in texts])
    return texts


def descriptor_of(path: Path) -> int:
    return next(int(link.name) for link in Path("/proc/self/fd").iterdir() if link.resolve() == path)


def frames(commits: list[list[str]]) -> list[bytes]:
    """Return the frames of a segment."""
    lines = (b"".join(line_of(json.dumps(text).encode()) for text in texts) for texts in commits)
    return [zstandard.compress(line, event_log.LEVEL) for line in lines]


def read(content: bytes) -> tuple[list[str], int]:
    reader = SegmentReader(content)
    return [json.loads(line) for line in reader], reader.damaged


@settings(max_examples=15)
@given(commits=COMMITS, data=st.data())
def test_torn_segment_is_cut_to_its_complete_frames(commits: list[list[str]], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        ends = [0]
        segment = LogSegment(Path(name))
        for texts in commits:
            commit(segment, texts)
            ends.append(segment.bytes)
        (left,) = folder.iterdir()
        path = folder / left.name[1:]
        assert left.read_bytes() == b"".join(frames(commits))
        os.close(descriptor_of(left))
        size = data.draw(st.integers(0, ends[-1]))
        os.truncate(left, size)
        whole = sum(end <= size for end in ends) - 1
        expected = [text for texts in commits[:whole] for text in texts]
        assert recover(folder) == ([path] if whole else [])
        assert segments(folder) == ([path] if whole else [])
        if whole:
            assert read(path.read_bytes()) == (expected, 0)
            assert path.stat().st_size == ends[whole]


@given(commits=COMMITS, data=st.data())
def test_damaged_byte_loses_only_its_own_frame(commits: list[list[str]], data: st.DataObject) -> None:
    whole = frames(commits)
    content = bytearray(b"".join(whole))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    hit = sum(end <= place for end in accumulate(map(len, whole)))
    undamaged = [text for number, texts in enumerate(commits) if number != hit for text in texts]
    lines, damaged = read(bytes(content))
    assert len(lines) >= len(undamaged)
    assert set(lines) <= {text for texts in commits for text in texts}
    if len(lines) < sum(map(len, commits)):
        assert damaged


def test_active_segments_are_skipped_and_abandoned_ones_are_closed(tmp_path: Path) -> None:
    segment = LogSegment(tmp_path)
    commit(segment, ["a"])
    (path,) = tmp_path.iterdir()
    assert (recover(tmp_path), segments(tmp_path), read(path.read_bytes())) == ([], [], (["a"], 0))
    with path.open("ab") as file:
        file.write(b"\x28\xb5\x2f\xfd torn")
    os.close(descriptor_of(path))  # as the end of its process does
    assert recover(tmp_path) == segments(tmp_path) == [tmp_path / path.name[1:]]
    assert read((tmp_path / path.name[1:]).read_bytes()) == (["a"], 0)


def test_segments_of_other_machines_are_abandoned_only_after_the_maximum_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = LogSegment(tmp_path)
    commit(segment, ["a"])
    (path,) = tmp_path.iterdir()
    fcntl.flock(descriptor_of(path), fcntl.LOCK_UN)  # the lock of a machine that others do not see
    monkeypatch.setattr(event_log, "gethostname", lambda: "another")
    assert recover(tmp_path) == []
    os.utime(path, (0, path.stat().st_mtime - event_log.ORPHAN_S))
    assert recover(tmp_path) == [tmp_path / path.name[1:]]
    with pytest.raises(OSError, match="another process has closed"):
        segment.append([line_of(b"{}")])
    segment.close()
    (kept,) = segments(tmp_path)
    assert read(kept.read_bytes())[0][0] == "a"
