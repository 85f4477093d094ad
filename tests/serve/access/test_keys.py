"""The file of keys, by the command that changes it and by the services that follow it."""

import json
import os
import re
import shlex
from hashlib import sha256
from pathlib import Path

import pytest

from hotplate.serve.access.keys import create, load
from hotplate.serve.errors import KeysUnreadable, ServiceMisused
from tests.support.command import failed, hotplate
from tests.support.forked import Forked
from tests.support.service import running, until

USER = "/v1/recommendations/42"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_printed_once_and_only_its_hash_is_kept(keys: Path) -> None:
    done = hotplate("keys", "create", "web", "--scope", "read", "--rate", "5", "--keys", keys)
    key = done.stdout.strip()
    assert re.fullmatch(r"hp_[A-Za-z0-9_-]{43}", key)
    assert key not in done.stderr
    text = keys.read_text()
    assert key not in text
    assert json.loads(text)["clients"][0]["primary"]["sha256"] == sha256(key.encode()).hexdigest()
    assert keys.stat().st_mode & 0o777 == 0o600
    listed = hotplate("keys", "list", HOTPLATE_KEYS=str(keys)).stdout
    assert "web" in listed
    assert json.loads(text)["clients"][0]["primary"]["sha256"] not in listed
    again = hotplate("keys", "create", "web", "--keys", keys).stdout.strip()
    assert again != key


def test_client_has_at_most_two_keys_and_revoking_promotes_the_secondary(keys: Path) -> None:
    command = ("--keys", keys)
    first, second = (
        json.loads(hotplate("keys", "create", "web", *scope, *command, "--json").stdout)
        for scope in (("--scope", "read"), ())
    )
    assert [first["kind"], second["kind"]] == ["primary", "secondary"]
    failed(
        hotplate("keys", "create", "web", "--scope", "admin", *command),
        "exists with the scope read",
        "create another client, such as web-admin",
        code=2,
    )
    refused = hotplate("keys", "create", "web", *command)
    failed(refused, "has two keys", code=2)
    proposed = shlex.split(refused.stderr.split("`")[1])
    assert hotplate(*proposed[1:]).stdout == "revoked the primary key of web\n"
    (left,) = load(keys)
    assert left.primary is not None
    assert left.primary.sha256 == sha256(second["key"].encode()).hexdigest()
    assert left.secondary is None
    failed(hotplate("keys", "revoke", "web", "--secondary", *command), "has no secondary key", code=2)
    assert hotplate("keys", "revoke", "web", *command).stdout == "revoked web\n"
    assert load(keys) == ()
    failed(hotplate("keys", "revoke", "web", *command), "No client is named web", code=2)


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\r\nX-Evil: 1", "../x", "é", "a" * 65, "-x\x00"])
def test_a_name_that_could_break_a_header_or_a_log_is_refused(keys: Path, name: str) -> None:
    with pytest.raises(ServiceMisused, match="name is 1 to 64 letters"):
        create(keys, name, ["read"])
    assert not keys.exists()


def test_concurrent_changes_of_the_key_file_are_all_kept(keys: Path) -> None:
    create_one = ("keys", "create", "--scope", "read", "--keys", keys)
    processes = [Forked(*create_one, f"client-{index}", output=Path(os.devnull)) for index in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert {client.name for client in load(keys)} == {f"client-{index}" for index in range(4)}
    assert {path.name for path in keys.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_key_file_link_and_permissions_survive_a_change(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    keys.symlink_to(tmp_path / "real" / "keys.json")
    create(keys, "web", ["read"])
    keys.chmod(0o640)
    create(keys, "shop", ["read"])
    assert keys.is_symlink()
    assert (len(load(keys)), keys.stat().st_mode & 0o777) == (2, 0o640)


def a_file(*clients: dict[str, object], **fields: object) -> str:
    return json.dumps({"format": 1, "clients": clients, **fields})


def a_client(name: str, digest: str = "0" * 64, **fields: object) -> dict[str, object]:
    return {"name": name, "scopes": ["read"], "primary": {"sha256": digest, "created_at": 1}, **fields}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be used: it is not a file of keys"),
        ('{"format": ' + "[" * 100_000, "format is not as it has to be$"),
        (a_file({"name": "hp_secret"}).replace("hp_", "\udcff"), "cannot be used: it is not a file of keys"),
        (a_file(format=2), "written by a newer hotplate; upgrade hotplate$"),
        (a_file(format=0), "format is not as it has to be"),
        (a_file(hp_secret=1), "it is not a file of keys"),
        (a_file(a_client("a", rate=7)).replace("7", "1e999"), r"clients\[0\]\.rate is not"),
        (a_file(a_client("a"), a_client("b")), "a client or a key twice"),
        (a_file(a_client("a", scopes=["hp_secret"])), r"clients\[.*\]\.scopes\[.*\] is not"),
        (a_file(a_client("a", "hp_secret")), r"primary\.sha256 is not"),
        (a_file(a_client("a\n")), r"\.name is not"),
        (a_file(a_client("a", rate=0)), r"\.rate is not"),
        (" " * (1 << 20) + a_file(), "more than"),
    ],
)
def test_file_without_keys_is_refused_without_quoting_it(keys: Path, text: str, sentence: str) -> None:
    keys.write_text(text, errors="surrogateescape")
    with pytest.raises(KeysUnreadable, match=sentence) as caught:
        load(keys)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None  # msgspec's error may quote it


def test_keys_with_a_byte_order_mark_are_read(keys: Path) -> None:
    hotplate("keys", "create", "web", "--scope", "read", "--keys", keys)
    clients = load(keys)
    keys.write_bytes(b"\xef\xbb\xbf" + keys.read_bytes())
    assert load(keys) == clients


def test_keys_are_rotated_without_a_restart_and_without_a_refused_request(folder: Path, keys: Path) -> None:
    old = create(keys, "web", ["read"]).key
    with running(folder, "--keys", str(keys), "--workers", "2") as service:

        def status(key: str) -> int:
            return service.get(USER, X_API_Key=key).status

        assert status(old) == 200
        new = create(keys, "web", []).key
        until(lambda: status(new) == 200)
        assert all(status(old) == 200 for _ in range(20))
        hotplate("keys", "revoke", "web", "--primary", "--keys", keys)
        until(lambda: all(status(old) == 401 for _ in range(20)))  # the other worker has seen it, too
        assert status(new) == 200
