"""Redis URLs: their parts, and that errors never show the password."""

from pathlib import Path

import pytest

from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreMisused
from hotplate.stores.redis.url import parse


def test_url_has_user_password_port_database_and_prefix() -> None:
    address = parse("redis://me:p%40ss@db.example:7000/3?prefix=shop.eu-1", {})
    assert (address.host, address.port, address.db, address.prefix) == ("db.example", 7000, 3, "shop.eu-1")
    assert (address.user, address.password, address.tls) == ("me", "p@ss", False)
    assert "p@ss" not in repr(address)


def test_password_is_read_from_environment_or_file_and_url_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"from a file\r\n")
    from_file = {"HOTPLATE_REDIS_PASSWORD_FILE": str(tmp_path / "secret")}
    both = {"HOTPLATE_REDIS_PASSWORD": "from the environment", **from_file}
    assert parse("redis://a", from_file).password == "from a file"
    assert parse("redis://a", both).password == "from the environment"
    assert parse("redis://:own@a", both).password == "own"
    with pytest.raises(StoreMisused, match="HOTPLATE_REDIS_PASSWORD_FILE"):
        parse("redis://a", {"HOTPLATE_REDIS_PASSWORD_FILE": str(tmp_path / "absent")})


def test_password_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes("geheimes Paßwort".encode("latin-1"))
    with pytest.raises(StoreMisused, match=r"HOTPLATE_REDIS_PASSWORD_FILE .* not text in UTF-8") as raised:
        parse("redis://a", {"HOTPLATE_REDIS_PASSWORD_FILE": str(file)})
    assert "geheim" not in str(raised.value)


def test_empty_password_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("\n")
    with pytest.raises(StoreMisused, match=rf"HOTPLATE_REDIS_PASSWORD_FILE names {file}, which is empty"):
        parse("redis://a", {"HOTPLATE_REDIS_PASSWORD_FILE": str(file)})


def test_absent_certificate_is_reported_before_an_absent_password_file(tmp_path: Path) -> None:
    environment = {"HOTPLATE_REDIS_PASSWORD_FILE": str(tmp_path / "absent")}
    with pytest.raises(StoreMisused, match="which should certify"):
        parse("rediss://a/0?ca=/absent.pem", environment)


def test_url_lists_sentinels_before_primary_name_with_a_separate_password() -> None:
    url = "rediss+sentinel://me:p4ss@a,[::1]:7000/the%20shop/3?prefix=shop&sentinel_user=watch"
    server = parse(url, {"HOTPLATE_REDIS_SENTINEL_PASSWORD": "theirs"})
    assert server.primary_name == "the shop"
    assert (server.db, server.prefix, server.user, server.password, server.tls) == (3, "shop", "me", "p4ss", True)
    assert [(sentinel.host, sentinel.port) for sentinel in server.sentinels] == [("a", 26379), ("::1", 7000)]
    assert {(sentinel.db, sentinel.user, sentinel.password, sentinel.tls) for sentinel in server.sentinels} == {
        (0, "watch", "theirs", True)
    }
    assert "p4ss" not in repr(server)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://:secret@a/?timeout=3", "no parameter 'timeout'; redis:// takes prefix"),
        ("redis://:secret@a/?ca=x", "no parameter 'ca'"),
        ("redis://:secret@a/?prefix=a&prefix=b", "twice"),
        ("redis://:secret@a/?prefix=a:b", "prefix=a:b of .* is not valid; write 1 to 64 letters"),
        ("redis://:secret@a/first", "not a number"),
        ("redis://:secret@a:99999/0", "port"),
        ("redis://:secret@/0", "names no server"),
        ("redis://:secret@a,b/0", "several servers; write redis.sentinel://"),
        ("rediss://:secret@a/0?ca=/absent.pem", "does not exist"),
        ("redis+sentinel://:secret@a,b", "which primary"),
        ("redis+sentinel://:secret@a,,b/shop", "names no server"),
        ("redis+sentinel://:secret@a,b:x/shop", "port"),
        ("redis+sentinel://:secret@a/shop/first", "not a number"),
        ("redis+sentinel://:secret@a/shop?read=replica", "no parameter 'read'"),
        ("redis+sentinel://:secret@a/shop?ca=x", "no parameter 'ca'"),
        ("redis+cluster://:secret@a,b/3", "but a cluster has only database 0"),
        ("redis+cluster://:secret@a:x,b/", "no valid port"),
        ("redis+cluster://:secret@/", "names no server"),
        ("redis+cluster://:secret@a/?ca=x", "no parameter 'ca'"),
        ("redis+cluster://:secret@a/?read=replica", "no parameter 'read'"),
        ("rediss://me:secret@a/?auth=entra", "a user or a password; leave one out"),
        ("rediss://:secret@a/?auth=password", "write entra"),
        ("redis://:secret@a/?auth=entra", "no parameter 'auth'"),
        ("redis://:secret@a/?client=redis-py", "no parameter 'client'"),
    ],
)
def test_invalid_url_is_an_error_without_the_password(url: str, complaint: str) -> None:
    with pytest.raises(StoreMisused, match=complaint) as caught:
        connect(url)
    assert "secret" not in str(caught.value)
