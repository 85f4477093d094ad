"""What a user bought or dismissed: hidden from that user alone, in all workers, for some hours, and after a restart."""

import json
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotplate.base.timing import HOUR_S
from hotplate.serve.api.schemas import Event
from hotplate.serve.consumed.stored_events import restore
from hotplate.serve.consumed.table import BUCKETS, CAPACITY, Consumed
from hotplate.serve.errors import EventsFailed, ServiceMisused
from hotplate.serve.events.shipment import ship
from hotplate.stores.encoding import encode_id
from hotplate.stores.event_log import SUFFIX, LogSegment, line_of, segments
from tests.support.command import json_of
from tests.support.event_log import written
from tests.support.service import Service, a_list, published, running, until
from tests.support.small_disk import small_disk
from tests.support.soak import in_soak

LISTS = {
    "user:1": a_list("a", "b", "c"), "user:2": a_list("a", "b", "c"), "item:a": a_list("b", "c"),
    "popular:": a_list("a", "p1", "p2", "p3"),
}  # fmt: skip
NAMES = st.sampled_from(["1", "2", "é", "a,b", 'quo"te'])
EVENTS = st.lists(
    st.tuples(st.sampled_from(["buy", "dismiss", "view"]), NAMES, NAMES, st.integers(-60, 60)), max_size=30
)
HIDING = ("--hide-consumed", "buy=24", "--hide-consumed", "dismiss=1", "--workers", "2")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    published(tmp_path / "store", LISTS)
    return tmp_path / "store"


@pytest.fixture
def service(store: Path) -> Iterator[Service]:
    with running(store, "--events", str(store.parent / "events"), *HIDING) as service:
        yield service


def report(service: Service, kind: str, user: str, *items: str, **fields: float) -> None:
    event = {"type": kind, "user": user, "items": items, **fields}
    body = {"events": [event]}
    assert service.post("/v1/events", body, Content_Type="application/json").status == 200


def shown(service: Service, path: str) -> list[str]:
    """Return the items that all of several connections, which the workers share, get."""
    answers = [service.get(path).json["items"] for _ in range(8)]
    (ids,) = {tuple(item["id"] for item in items) for items in answers}
    return list(ids)


def hide(consumed: Consumed, kind: str, user: str, items: Sequence[str], happened_at: float | None) -> int:
    """Hide what an event hides, if anything; return the number of pairs that had no room."""
    event = Event(kind, user, tuple(items), time=happened_at)
    return sum(map(consumed.hide, consumed.hidden_by([event])))


@settings(max_examples=50)
@given(EVENTS)
def test_items_are_hidden_until_the_last_event_of_their_type_is_old(events: list[tuple[str, str, str, int]]) -> None:
    hours = {"buy": 24.0, "dismiss": 1.0}
    consumed = Consumed([f"{kind}={number}" for kind, number in hours.items()])
    now = time.time()
    expected = defaultdict[str, set[str]](set)
    for kind, user, item, age_h in events:
        hide(consumed, kind, user, [item], now - age_h * HOUR_S)
        if max(0, age_h) < hours.get(kind, 0.0):
            expected[user].add(item)
    for user in ("1", "2", "é", "a,b", 'quo"te', "other"):
        hidden = consumed.hidden_from(user)
        hidden_items = {item for item in ("1", "2", "é", "a,b", 'quo"te') if hidden and hidden(encode_id(item))}
        assert hidden_items == expected[user]


def test_a_full_table_forgets_the_pairs_that_expire_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.serve.consumed.table.BUCKETS", 1 << 10)
    consumed = Consumed(["buy=1"])
    items = [f"{n}" for n in range(100)]
    for user in range(640):  # twice what has room
        hide(consumed, "buy", f"{user}", items, None)
    hidden = consumed.hidden_from("639")
    assert hidden is not None
    assert sum(hidden(encode_id(item)) for item in items) > 90


def test_consumed_items_disappear_at_once_from_lists_of_that_user(service: Service) -> None:
    path = "/v1/recommendations"
    assert shown(service, f"{path}/1?n=3") == ["a", "b", "c"]
    report(service, "buy", "1", "a", "c")
    report(service, "dismiss", "1", "p1")
    report(service, "click", "1", "b")
    assert shown(service, f"{path}/1?n=3") == ["b", "p2", "p3"]
    assert [item["id"] for item in service.admin("/console/user?id=1").json["items"]] == ["b", "p2", "p3"]
    assert shown(service, f"{path}/1?n=2&exclude=b&fields=id") == ["p2", "p3"]
    assert shown(service, f"{path}/2?n=3") == ["a", "b", "c"]
    assert shown(service, "/v1/similar/a") == ["b", "c"]
    report(service, "buy", "nobody", "a")
    assert shown(service, f"{path}/nobody") == ["p1", "p2", "p3"]
    body = b'{"users": ["stranger", "nobody", "1", "2", "nobody"], "n": 2}'
    results = service.post(path, body).json["results"]
    assert [[item["id"] for item in result["items"]] for result in results] == [
        ["a", "p1"], ["p1", "p2"], ["b", "p2"], ["a", "b"], ["p1", "p2"],
    ]  # fmt: skip
    scored = service.post("/score", b'{"data": [["1", 1], ["nobody", 1]]}').json
    assert [[item["id"] for item in result["items"]] for result in scored] == [["b"], ["p1"]]


def test_events_that_are_too_old_hide_nothing(service: Service) -> None:
    report(service, "dismiss", "1", "a", time=time.time() - 2 * HOUR_S)
    report(service, "buy", "1", "b", time=time.time() - 2 * HOUR_S)
    assert shown(service, "/v1/recommendations/1?n=2") == ["a", "c"]


def test_consumed_items_stay_hidden_after_a_kill_and_a_restart(store: Path) -> None:
    options = ("--events", str(store.parent / "events"), *HIDING)
    with running(store, *options) as first:
        report(first, "buy", "1", "a")
        before = first.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(first.workers()) == 2 and not set(before) & set(first.workers()))
        until(first.is_ready)
        assert shown(first, "/v1/recommendations/1?n=2") == ["b", "c"]
        report(first, "buy", "2", "b")
        first.kill()
    with running(store, *options) as second:
        assert shown(second, "/v1/recommendations/1?n=2") == ["b", "c"]
        assert shown(second, "/v1/recommendations/2?n=2") == ["a", "c"]


def test_restart_reads_segments_closed_or_shipped_by_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    segment = LogSegment(tmp_path)
    event = {"id": "1", "time": time.time(), "type": "buy", "user": "1", "items": ["a"], "role": "live"}
    segment.append([line_of(json.dumps(event, separators=(",", ":")).encode())])
    segment.close()
    (closed,) = tmp_path.iterdir()
    (tmp_path / f".{closed.name}").symlink_to("closed meanwhile")
    (tmp_path / "20200101T000000Z-00000000-00000000.events.zst").symlink_to("shipped meanwhile")
    (tmp_path / "29990101T000000Z-00000000-00000000.events.zst").mkdir()
    consumed = Consumed(["buy=1"])
    restore(consumed, tmp_path)
    hidden = consumed.hidden_from("1")
    assert hidden is not None
    assert hidden(encode_id("a"))
    assert "00000000.events.zst cannot be read" in caplog.text


def test_restart_skips_events_of_a_newer_hotplate_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events_of(tmp_path, "1")
    events_of(tmp_path, "2", items=[{"id": "a"}])
    (tmp_path / "29990101T000000Z-00000000-00000000.events2.zst").touch()
    assert hidden_after_restart(tmp_path, "1", "2") == ["1"]
    assert caplog.text.count("newer hotplate") == 2


def events_of(
    folder: Path, *users: str, kind: str = "buy", hours_ago: float = 0.0, items: Sequence[object] = ("a",)
) -> None:
    """Write a closed segment with an event of each user."""
    segment = LogSegment(folder)
    for user in users:
        event = {"id": user, "time": time.time() - 3600 * hours_ago, "type": kind, "user": user, "items": list(items)}
        segment.append([line_of(json.dumps(event, separators=(",", ":")).encode())])
    segment.close()


def hidden_after_restart(folder: Path, *users: str, hours: str = "buy=24") -> list[str]:
    consumed = Consumed([hours])
    restore(consumed, folder)
    return [user for user in users if consumed.hidden_from(user) is not None]


def test_shipped_events_still_hide_items_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    shipped = tmp_path / "shipped"
    folder.mkdir()
    assert hidden_after_restart(folder) == []  # a service with the longest hours
    assert hidden_after_restart(folder, hours="buy=1") == []
    events_of(folder, "1", "2")
    events_of(folder, "3", hours_ago=23)
    events_of(folder, "4", hours_ago=25)
    events_of(folder, "5", kind="click")
    for user in ("", "6"):
        ship(folder, f"file://{shipped}")
        assert not segments(folder)
        assert hidden_after_restart(folder, *"12345") == ["1", "2", "3"]
        if user == "":
            events_of(folder, "6")
    assert hidden_after_restart(folder, "6") == ["6"]
    assert len(segments(shipped)) == 5
    assert {event["user"] for event in written(shipped)} == set("123456")


def test_an_interrupted_shipment_keeps_each_event_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_after_restart(tmp_path)
    events_of(tmp_path, "1")
    unlink = Path.unlink

    def interrupted(path: Path, *, missing_ok: bool = False) -> None:
        if path.name.endswith(SUFFIX) and not path.name.startswith("."):
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ship(tmp_path, f"file://{tmp_path}-shipped")
    ship(tmp_path, f"file://{tmp_path}-shipped")
    assert [event["user"] for event in written(tmp_path)] == ["1"]
    assert hidden_after_restart(tmp_path, "1") == ["1"]


def test_a_shipment_from_a_full_disk_keeps_what_hides_items(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as folder:
        hidden_after_restart(folder)
        events_of(folder, "1")
        with suppress(OSError), (folder / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(512))
        ship(folder, f"file://{tmp_path / 'shipped'}")
        assert hidden_after_restart(folder, "1") == ["1"]


def test_a_shipment_with_damaged_hours_keeps_all_until_a_service_wrote_them_again(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    hidden_after_restart(folder)
    events_of(folder, "1")
    (folder / ".hide-consumed.json").write_text('{"buy":')
    with pytest.raises(EventsFailed, match=r"hide-consumed\.json is damaged .* restart the services"):
        ship(folder, f"file://{tmp_path / 'shipped'}")
    assert hidden_after_restart(folder, "1") == ["1"]
    ship(folder, f"file://{tmp_path / 'shipped'}")
    assert not segments(folder)
    assert hidden_after_restart(folder, "1") == ["1"]


def test_users_find_names_kept_events(tmp_path: Path) -> None:
    hidden_after_restart(tmp_path)
    events_of(tmp_path, "1")
    ship(tmp_path, f"file://{tmp_path}-shipped")
    published(tmp_path / "store", {"user:1": a_list("a")})
    where = ("--store", f"file://{tmp_path}/store", "--events", str(tmp_path))
    assert ["1"] in json_of("users", "find", "1", *where)["elsewhere"].values()


@pytest.mark.parametrize("text", ["buy", "buy=", "=24", "buy=0", "buy=nan", "buy=99999"])
def test_contradictory_option_is_refused(text: str) -> None:
    with pytest.raises(ServiceMisused, match="as buy=24"):
        Consumed([text])


@pytest.mark.parametrize("parts", [128, in_soak(1)])
def test_a_table_holds_its_capacity_and_counts_what_it_forgets(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotplate.serve.consumed.table.BUCKETS", BUCKETS // parts)
    consumed = Consumed(["buy=1"])
    users = [f"{number}" for number in range(CAPACITY // parts)]
    forgotten = sum(hide(consumed, "buy", user, ["a"], None) for user in users)
    hidden = sum(is_hidden(consumed, user, "a") for user in users)
    assert hidden == len(users) - forgotten
    assert forgotten <= CAPACITY // parts * 1e-5

    further_users = [f"further {number}" for number in range(2 * len(users))]
    forgotten += sum(hide(consumed, "buy", user, ["a"], None) for user in further_users)
    hidden = sum(is_hidden(consumed, user, "a") for user in [*users, *further_users])
    assert forgotten > len(users) // 10
    assert hidden == len(users) + len(further_users) - forgotten


def is_hidden(consumed: Consumed, user: str, item: str) -> bool:
    hidden = consumed.hidden_from(user)
    return hidden is not None and hidden(encode_id(item))
