"""The access log: off unless requested, and never a place where ids, keys or queries end up."""

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.telemetry.records import RequestRecord
from tests.support.service import Service, a_list, published, running, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    published(tmp_path / "store", {"user:secret-user": a_list("a", "b")})
    return tmp_path / "store"


def accesses(service: Service) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "access"]


def until_logged(service: Service, count: int) -> list[dict[str, Any]]:
    until(lambda: len(accesses(service)) >= count)
    return accesses(service)


def test_each_request_logs_one_line_without_ids_keys_or_queries(folder: Path) -> None:
    keys = folder.parent / "keys.json"
    secret = create(keys, "web", ["read"]).key
    with running(folder, "--access-log", "1", "--keys", str(keys)) as service:
        key = {"Authorization": f"Bearer {secret}", "X_API_Key": secret}
        answer = service.get("/v1/recommendations/secret-user?n=1&segment=secret-segment", X_Request_Id="r-1", **key)
        service.post("/v1/recommendations", b'{"users": ["secret-user"]}', **key)
        service.get("/secret-path", **key)
        service.request("PURGE", "/v1/popular", None, **key)
        service.get("/v1/recommendations/secret-user", X_Request_Timeout_Ms="0", **key)
        lines = until_logged(service, 5)
        assert len(lines) == 5
        log = service.log.read_text()
        assert "secret" not in log
        assert secret not in log
    first = lines[0]
    assert first.keys() == {
        "time", "level", "logger", "process", "message", "method", "route", "status", "duration_ms", "bytes",
        "request_id", "client", "release", "source", "tier", "items", "user",
    }  # fmt: skip
    assert (first["source"], first["tier"], first["items"]) == ("personal", "file", 1)
    assert re.fullmatch("[0-9a-f]{32}", first["user"])
    assert all("user" not in line for line in lines[1:])
    assert (first["method"], first["route"], first["status"]) == ("GET", "/v1/recommendations/{user}", 200)
    assert (first["request_id"], first["bytes"], first["client"]) == ("r-1", len(answer.body), "web")
    assert 0 < first["duration_ms"] < 60_000
    other_lines = [(line["method"], line["route"], line["status"]) for line in lines[1:]]
    assert other_lines == [
        ("POST", "/v1/recommendations", 200),
        ("GET", "other", 404),
        ("other", "/v1/popular", 405),
        ("GET", "/v1/recommendations/{user}", 503),
    ]


def test_a_share_of_requests_is_logged(folder: Path) -> None:
    with running(folder, "--access-log", "0.3") as service:
        for _ in range(300):
            service.get("/livez")
        service.stop()
        assert 40 < len(accesses(service)) < 160


@pytest.mark.parametrize("users", ["hashed", "none", "plain"])
def test_users_are_logged_as_configured(users: Literal["hashed", "none", "plain"]) -> None:
    lines = list[str]()
    for secret in (b"one", b"one", b"two"):
        log = AccessLog(1.0, users=users, secret=secret, write=lines.append)
        log.write(RequestRecord("/livez", "GET", 200, 1.0, 2, "r-1", None, "42"), None)
    first, same, other = (json.loads(line).get("user") for line in lines)
    assert first == same
    assert {"hashed": first not in (other, "42"), "none": first is None, "plain": first == "42"}[users]
