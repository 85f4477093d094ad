"""The deny-list: it holds for every answer, from the moment that its file says so, and whatever becomes of that."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotplate.serve.errors import ServiceMisused
from hotplate.serve.lists.deny_list import DenyListFile, DenyListInvalid, parse
from hotplate.stores.encoding import NO_OFFSET, body_of, cut_without, decode, encode_id
from tests.support.service import Service, a_list, ids, published, running, status_of, until

LISTS = {f"user:{user}": a_list(*map(str, range(20))) for user in ("1", "2", "a b", 'quo"te')}
LISTS |= {
    "item:7": a_list("1", "2", "x"),
    "item:8": a_list("3", "x"),
    "popular:": a_list("1", "p1", "p2"),
    "popular:vip": a_list("v1"),
}


@pytest.fixture
def denied(tmp_path: Path) -> Path:
    path = tmp_path / "denied.txt"
    path.write_text("# by request\nitem:1\n\nuser:2\n")
    return path


@pytest.fixture
def service(tmp_path: Path, denied: Path) -> Iterator[Service]:
    published(tmp_path / "store", LISTS)
    with running(tmp_path / "store", "--deny-list", str(denied)) as running_service:
        yield running_service


def replace(path: Path, text: str) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


def test_denied_items_appear_in_no_answer_and_denied_users_are_unknown(service: Service) -> None:
    assert ids(service.get("/v1/recommendations/1")) == ["0", *map(str, range(2, 11))]
    assert ids(service.get("/v1/recommendations/1?n=3&exclude=0")) == ["2", "3", "4"]
    assert ids(service.get("/v1/similar/7")) == ["2", "x", "p1", "p2"]
    assert ids(service.get("/v1/popular?fields=id")) == ["p1", "p2"]
    answer = service.get("/v1/recommendations/2")
    shown = ids(answer), answer.json["source"], answer.headers["cache-control"]
    assert shown == (["p1", "p2"], "popular", "no-store")
    many = service.post("/v1/recommendations", {"users": ["2", "1", "2"], "n": 2})
    assert [(result["status"], ids(result)) for result in many.json["results"]] == [
        ("unknown", ["p1", "p2"]),
        ("ok", ["0", "2"]),
        ("unknown", ["p1", "p2"]),
    ]
    only = service.post("/v1/recommendations", b'{"users": ["2"], "segment": "vip"}').json["results"]
    assert [(result["source"], result["items"][0]["id"]) for result in only] == [("popular", "v1")]
    scored = service.post("/score", b'{"data": [["2", 1], ["1", 2]]}').json
    assert [(result["status"], ids(result)) for result in scored] == [
        ("unknown", ["p1"]),
        ("ok", ["0", "2"]),
    ]


def test_only_a_short_list_that_lost_an_item_is_filled_up_to_n(service: Service) -> None:
    for query in ("?n=4", "?n=4&fields=id"):  # by the fast lane and not
        assert ids(service.get(f"/v1/similar/7{query}")) == ["2", "x", "p1", "p2"]
        assert ids(service.get(f"/v1/similar/8{query}")) == ["3", "x"]


def test_changed_file_is_followed_and_broken_file_is_reported(service: Service, denied: Path) -> None:
    replace(denied, "item:0\nuser:1\n")
    until(lambda: service.get("/v1/recommendations/1").json["source"] == "popular")
    assert ids(service.get("/v1/recommendations/2?n=2")) == ["1", "2"]
    assert service.status == "ready"

    replace(denied, "item:0\nuser:secret-person\nuser\n")
    until(lambda: service.status == "degraded")
    until(lambda: "line 3 is not an entry; an entry is item:ID or user:ID" in str(service.states()))
    until(lambda: "line 3" in service.log.read_text())
    assert service.get("/v1/recommendations/1").json["source"] == "popular"

    denied.unlink()
    until(lambda: "No such file" in str(service.states()))
    assert ids(service.get("/v1/recommendations/2?n=2")) == ["1", "2"]

    replace(denied, "")
    until(lambda: service.status == "ready")
    assert ids(service.get("/v1/recommendations/1?n=2")) == ["0", "1"]
    log = service.log.read_text()
    assert "secret-person" not in log
    assert log.count("line 3") == 1


def test_restarted_processes_keep_the_deny_list_from_before_the_file_broke(service: Service, denied: Path) -> None:
    replace(denied, "user:1\n")
    until(lambda: service.get("/v1/recommendations/1").json["source"] == "popular")
    until(lambda: "denied.txt again" in service.log.read_text())  # the admin process keeps it
    replace(denied, "broken\n")
    until(lambda: service.status == "degraded")
    (worker,) = service.workers()
    (admin,) = set(service.processes()) - {worker}
    for process in (worker, admin):
        os.kill(process, signal.SIGKILL)
    until(lambda: service.workers() not in ([worker], []))
    until(service.is_ready)
    assert service.get("/v1/recommendations/1").json["source"] == "popular"
    until(lambda: admin not in service.processes() and status_of(service.admin_port, "/livez") == 200)
    assert service.admin("/console/user?id=1").json["source"] == "popular"


def test_the_parent_reads_no_file_that_changes(service: Service, denied: Path) -> None:
    def bytes_read() -> int:
        lines = Path(f"/proc/{service.process.pid}/io").read_text().splitlines()
        return int(lines[0].removeprefix("rchar: "))

    before = bytes_read()
    replace(denied, "user:1\n" + "# a comment of some length\n" * 200_000)
    until(lambda: service.get("/v1/recommendations/1").json["source"] == "popular")
    until(lambda: "denied.txt again" in service.log.read_text())
    assert bytes_read() - before < 1 << 20
    for process in service.processes():
        os.kill(process, signal.SIGSTOP)  # as if each waited for a disk
    try:
        assert service.health("/livez").status == 200
        assert service.health("/readyz").status == 200
    finally:
        for process in service.processes():
            os.kill(process, signal.SIGCONT)


def test_deny_list_ids_match_as_written(denied: Path) -> None:
    text = '\ufeff# comment\r\nitem: a b \r\nuser:#1\nuser:x:y\nitem:"quo\\"te"\nitem:quo"te2\nuser:"\\n "\n'
    denied.write_bytes(text.encode())
    listed = DenyListFile(denied).current
    assert [user for user in ("#1", "x:y", "\n ", "x", "1", "") if user in listed.users] == ["#1", "x:y", "\n "]
    items = ["a b", 'quo"te', 'quo"te2']
    assert [item for item in (*items, "quo", "a") if encode_id(item) in listed.items] == items


def test_overrides_of_windows_are_refused_by_their_encoding(tmp_path: Path) -> None:
    path = tmp_path / "overrides.csv"
    path.write_bytes("item,stock\nmüsli,0\n".encode("cp1252"))
    with pytest.raises(ServiceMisused, match="it is not UTF-8; save it as UTF-8"):
        DenyListFile(None, path)
    path.write_bytes('{"item": "müsli", "stock": 0}\n'.encode("utf-8-sig"))
    assert DenyListFile(None, path).current.overrides == {"stock": {encode_id("müsli"): "0"}}


@pytest.mark.parametrize("line", [b"item:", b"user", b"Item:1", b"\xff", b"item:" + b"x" * 257, b'item:"x', b'user:""'])
def test_invalid_line_is_named(line: bytes) -> None:
    with pytest.raises(DenyListInvalid, match="line 2 is not an entry") as raised:
        parse(b"item:1\n" + line + b"\n")
    assert "xxx" not in str(raised.value)


@pytest.mark.parametrize("identifier", ["1", 'quo"te', 'quo"', "\\", "é", "a,b", "},\n{"])
def test_any_item_can_be_denied_without_affecting_others(identifier: str) -> None:
    similar_ids = ["11", "quo", 'quo"te2', 'quo\\"te', "e"]
    listed = a_list(*similar_ids[:3], identifier, *similar_ids[3:])
    denied = parse(b"item:" + encode_id(identifier))
    for body in (NO_OFFSET + listed, body_of(listed)):
        assert [item["id"] for item in decode(cut_without(body, 10, denied.items.__contains__))] == similar_ids
