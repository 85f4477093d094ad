"""Refusals of unauthorised and malformed requests, and that keys never appear in answers or logs."""

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotplate.serve.access.auth import guard_of
from hotplate.serve.access.keys import SCOPES, create
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.problems import Problem
from hotplate.serve.settings import ServiceSettings
from tests.support.forked import Forked
from tests.support.service import UNTIL_S, Answer, Service, a_list, published, running, until

USER = "/v1/recommendations/42"
PROBES = ("/livez", "/readyz", "/health/live", "/health/ready")
WRONG = "hp_" + "A" * 43


@dataclass(frozen=True, slots=True)
class Keyed:
    """A service that takes keys, one for each scope."""

    service: Service
    read: str
    admin: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("security") / "store"
    published(store, {"user:42": a_list("a", "b")})
    return store


@pytest.fixture(scope="module")
def keyed(folder: Path) -> Iterator[Keyed]:
    keys = folder.parent / "keys.json"
    created = [create(keys, name, [name]).key for name in ("read", "admin")]
    with running(folder, "--keys", str(keys), "--admin-host", "0.0.0.0") as service:
        yield Keyed(service, *created)


def refused(answer: Answer, status: int, problem: str) -> str:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["type"] == f"urn:hotplate:problem:{problem}"
    return answer.headers["www-authenticate"]


def test_a_request_without_a_key_is_refused_with_a_challenge(keyed: Keyed) -> None:
    answers = [keyed.service.get(path) for path in (USER, "/v1/similar/x", "/v1/popular")]
    for answer in (*answers, keyed.service.admin("/metrics"), keyed.service.admin("/v1/releases/rollback", "POST")):
        assert refused(answer, 401, "no-key") == 'Bearer realm="hotplate"'
    assert refused(keyed.service.post("/v1/recommendations", b'{"users": []}'), 401, "no-key")
    assert refused(keyed.service.request("DELETE", "/v1/popular"), 401, "no-key")
    assert refused(keyed.service.get(USER, Authorization="Basic aHA6eA=="), 401, "no-key")
    for name in ("key", "api_key", "X-API-Key", "access_token"):
        assert refused(keyed.service.get(f"{USER}?{name}={keyed.read}"), 401, "no-key")
    assert refused(keyed.service.get(USER, Cookie=f"X-API-Key={keyed.read}"), 401, "no-key")
    for path in PROBES:
        assert keyed.service.get(path, X_API_Key=WRONG).status == keyed.service.get(path).status == 200


def test_either_key_header_is_accepted_and_responses_are_cached_privately(keyed: Keyed) -> None:
    assert keyed.service.get(USER, X_API_Key=keyed.read).status == 200
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert keyed.service.get(USER, Authorization=f"{scheme} {keyed.read}").status == 200
    assert keyed.service.get("/v1/popular", X_API_Key=keyed.read).headers["cache-control"] == "private, max-age=60"


def test_wrong_key_is_refused_even_if_nearly_right(keyed: Keyed, folder: Path) -> None:
    stored = json.loads((folder.parent / "keys.json").read_text())["clients"][0]["primary"]["sha256"]
    swapped = keyed.read[:-1] + ("A" if keyed.read[-1] != "A" else "B")
    near = (keyed.read[:-1], keyed.read + "A", keyed.read.swapcase(), swapped, stored, f"{keyed.read}\t,")
    for key in (*near, WRONG, "x", "hp_", "é", "\xff" * 40, "a" * 5000, "0" * 64, "*"):
        for headers in ({"X_API_Key": key}, {"Authorization": f"Bearer {key}"}):
            assert "invalid_token" in refused(keyed.service.get(USER, **headers), 401, "unknown-key")


def test_key_without_the_scope_is_refused_naming_the_scope(keyed: Keyed) -> None:
    answer = keyed.service.admin("/metrics", X_API_Key=keyed.read)
    assert refused(answer, 403, "missing-scope").endswith('error="insufficient_scope", scope="admin"')
    assert "the scope admin, which the key or token of read lacks" in answer.json["detail"]
    assert 'scope="read"' in refused(keyed.service.get(USER, X_API_Key=keyed.admin), 403, "missing-scope")
    assert keyed.service.admin("/metrics", X_API_Key=keyed.admin).status == 200


def test_log_names_the_client_of_each_change_and_refusal(keyed: Keyed) -> None:
    admin = keyed.service.admin
    log = keyed.service.log.read_text
    assert admin("/console/keys?name=new", "POST", X_API_Key=keyed.admin).status == 200
    until(lambda: "the operator admin made the primary key of new over HTTP" in log())
    until(lambda: admin("/metrics", X_API_Key=keyed.read).status == 403 and "the key or token of read lacks" in log())
    assert {admin("/metrics").status for _ in range(100)} == {401}
    assert log().count("was refused") < 50


def test_path_spelling_bypasses_neither_keys_nor_docs_folder(keyed: Keyed) -> None:
    for path in (
        "/livez/../v1/popular", "/livez%2f..%2fv1%2fpopular", "//v1/popular", "/v1/popular%00", "/v1/./popular",
        "/livez/%2e%2e/v1/popular", "/livez/%c0%ae%c0%ae/v1/popular", "/livez%00/v1/popular", "/livez;/../v1/popular",
        "/livez\\..\\v1\\popular", "/%76%31/popular", "/V1/popular", "/v1/popular/", "/docs/../v1/popular",
    ):  # fmt: skip
        answer = keyed.service.get(path)
        assert (answer.status in (400, 401, 404), b"p1" in answer.body) == (True, False), path
    for name in (
        "../keys.json", "..%2fkeys.json", "..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "%2e%2e%2fswagger-ui.css",
        "", "index.html", "..%2Fswagger-ui.css", "swagger-ui.css%00", "%c0%ae%c0%ae%c0%afkeys.json", "x" * 4000,
    ):  # fmt: skip
        assert keyed.service.get(f"/docs/{name}").status == 404, name


def test_newline_in_id_or_parameter_injects_no_header(keyed: Keyed) -> None:
    split = "x%0d%0aSet-Cookie:%20a=b%0d%0a%0d%0aHTTP/1.1%20200%20OK"
    paths = (USER, "/v1/similar/", "/v1/popular?segment=", "/v1/popular?fields=", "/v1/popular?", "/", "/docs/")
    for path in (f"{path}{split}" for path in paths):
        answer = keyed.service.get(path, X_API_Key=keyed.read)
        assert answer.status in (200, 400, 404)
        assert "set-cookie" not in answer.headers
        assert not any("a=b" in value for value in answer.headers.values())


def test_anonymous_access_allows_reading_only(folder: Path, keyed: Keyed) -> None:
    keys = str(folder.parent / "keys.json")
    everywhere = ("--host", "0.0.0.0", "--admin-host", "0.0.0.0")
    with running(folder, *everywhere, "--anonymous", "--keys", keys) as service:
        assert service.get(USER).status == 200
        assert service.get("/v1/popular").headers["cache-control"] == "public, max-age=60"
        refused(service.admin("/metrics"), 401, "no-key")
        refused(service.get(USER, X_API_Key=WRONG), 401, "unknown-key")
        assert service.admin("/metrics", X_API_Key=keyed.admin).status == 200


async def test_without_keys_loopback_callers_have_all_rights() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        for scope in SCOPES:
            await guard_of(ServiceSettings(("file:///x",), host), None).admit({}, scope)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "", "localhost.example", "127.0.0.1.nip.io"])
async def test_service_on_public_address_requires_an_explicit_access_policy(host: str) -> None:
    with pytest.raises(ServiceMisused, match=f"{host} can be reached from other machines"):
        guard_of(ServiceSettings(("file:///x",), host), None)
    anonymous = guard_of(ServiceSettings(("file:///x",), host, anonymous=True), None)
    await anonymous.admit({}, "read")
    for scope in ("events", "admin"):
        with pytest.raises(Problem, match="takes a key"):
            await anonymous.admit({}, scope)


def test_service_with_unreadable_keys_does_not_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServiceMisused, match=r"none\.json cannot be read"):
        guard_of(ServiceSettings((f"file://{folder}",), keys=tmp_path / "none.json"), None)
    monkeypatch.setenv("HOTPLATE_KEYS", "")
    process = Forked("serve", "--store", f"file://{folder}", "--port", "0", output=tmp_path / "log")
    assert process.wait(UNTIL_S) == 2
    message, *more = (tmp_path / "log").read_text().splitlines()
    assert "HOTPLATE_KEYS is empty" in message
    assert not more


@pytest.mark.parametrize("odd", ["a\\nb", "a\tb", "x" * 129, '"}{"', "\x1b[2J", "é", "a b", "%0a", "<script>"])
def test_malformed_request_id_is_neither_returned_nor_logged(keyed: Keyed, odd: str) -> None:
    answer = keyed.service.get(USER, X_API_Key=keyed.read, X_Request_Id=odd)
    assert answer.status in (200, 400)  # an invalid header value is not HTTP
    assert re.fullmatch("[0-9a-f]{20}", answer.headers["x-request-id"])
    assert keyed.service.get(USER, X_Request_Id="abc-123").headers["x-request-id"] == "abc-123"


def exchanged(service: Service, request: bytes) -> bytes:
    """Send bytes and read until the connection closes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def test_log_lines_are_single_json_objects_without_keys_for_any_request(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    good, gone = (create(keys, name, ["read"]).key for name in ("web", "gone"))
    secrets = [good, gone, WRONG, "in-a-query-secret"]
    answers = list[bytes]()
    with running(folder, "--keys", str(keys)) as service:
        for key in (good, gone, WRONG):
            for headers in ({"X_API_Key": key}, {"Authorization": f"Bearer {key}"}):
                for path in (USER, "/metrics", "/nowhere", "/v1/popular?n=0", f"{USER}?key=in-a-query-secret"):
                    answer = service.get(path, **headers)
                    answers += [answer.body, str(answer.headers).encode()]
            line = b"GET /v1/popular HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\nConnection: close\r\n" % key.encode()
            answers.append(exchanged(service, line + b"bad header\r\n\r\n"))
            answers.append(exchanged(service, line + b'X-Request-Id: a\r {"level":"error"}\r\n\r\n'))
            answers.append(exchanged(service, line.replace(b"popular", b"popular%0a{%22level%22:1}") + b"\r\n"))
        keys.write_text(keys.read_text()[:-20])
        created = [path.read_bytes() for path in tmp_path.iterdir()]
        assert service.stop() == 0
        log = service.log.read_bytes()
    for line in log.splitlines():
        assert line.startswith(b"serving ") or isinstance(json.loads(line), dict)
    everything = b"\n".join([log, *answers, *created])
    assert [secret for secret in secrets if secret.encode() in everything] == []
