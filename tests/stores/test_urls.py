"""Shown URLs of stores never hold a secret, for any well-formed or malformed URL."""

import traceback
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hotplate.stores.connect import connect, with_max_ru
from hotplate.stores.errors import StoreError, StoreMisused
from hotplate.stores.store import Store
from hotplate.stores.urls import redacted, split, url_of

SCHEMES = ("redis", "rediss", "cosmos", "cosmos+http", "cosmos+https", "file", "postgres", "REDIS", "")
SEPARATORS = ("://", ":", ":/", "//", ":///", "")
# Digits and marks that occur nowhere else in the sentences and URLs of these tests.
# No scheme starts with these, as a scheme is shown.
SECRETS = (
    st.text(st.sampled_from("789§µ/?#[]@:%&=;\\ ℀\n\u200b"), max_size=12)
    .map(lambda text: f"789{text}987")
    .filter(lambda secret: "://" not in secret)
)
HOSTS = st.sampled_from(("host", "host:6370", "host/0", "[::1]:6370/db", "", "host:x/0?prefix=a", "?ca=b", "a/b#c"))


@given(st.sampled_from(SCHEMES), st.sampled_from(SEPARATORS), SECRETS, HOSTS)
@example("redis", "://", "987/?987", "host:6370/0")
@example("redis", "://", "987#987", "host:6370/0")
@example("redis", "://", "[987", "host:6370/0")
@example("cosmos", "://", "987℀987", "host/db")
def test_only_the_scheme_is_shown_before_the_last_at(scheme: str, separator: str, secret: str, host: str) -> None:
    url = f"{scheme}{separator}{secret}@{host}"
    start = f"{scheme.lower()}://" if separator.startswith("://") and scheme else ""
    assert redacted(url).startswith(start)
    shown = redacted(url).removeprefix(start)
    assert host.startswith(shown)
    assert "789" not in redacted(url)


@given(st.sampled_from(SCHEMES), st.sampled_from(SEPARATORS), SECRETS, HOSTS)
@example("redis", "://", "u:987/?987", "host:6370/0")
@example("redis", "://", ":987/987", "host:6370/0")
@example("redis", "://", ":987?987&b", "host:6370/0")
@example("rediss", "://", ":987#987", "host:6370/0")
@example("redis", "://", ":[987", "host:6370/0")
@example("redis", "://", ":987℀987", "host:6370/0")
@example("cosmos", "://", ":987/987==", "account/db")
@example("cosmos+http", "://", "987", "host/db?ru=b")
@example("cosmos", "://", "acc/db?ru=987", "x")
def test_no_error_of_opening_a_store_shows_a_secret(scheme: str, separator: str, secret: str, host: str) -> None:
    """Nor does its traceback, with all causes."""
    url = f"{scheme}{separator}{secret}@{host}"
    for act in (lambda: connect(url), lambda: with_max_ru(url, 100)):
        try:
            act()
        except StoreError as error:
            seen = "".join(traceback.format_exception(error))
            assert "789" not in seen
            assert "987" not in seen


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("file:///data/a.csv", "file:///data/a.csv"),
        (Path("file:///data/a.csv"), "file:///data/a.csv"),
        (Path("simplecache::file:///data/a.csv"), "simplecache::file:///data/a.csv"),
        (Path("az://clicks/a.csv"), "az://clicks/a.csv"),
        ("AZ://clicks/a.csv", "az://clicks/a.csv"),
        ("/data/a.csv", None),
    ],
)
def test_path_of_a_url_keeps_its_slashes(path: str | Path, url: str | None) -> None:
    assert url_of(path) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("redis://u:p@cache:6379/0?prefix=a", "redis://cache:6379/0"),
        ("redis://:pa/ss@cache/0", "redis://cache/0"),
        ("redis://:pa?ss@cache/0", "redis://cache/0"),
        ("redis://h/0?x=pa@ss&token=t", "redis://ss"),
        ("rediss://u:p@[::1]:6379,h/0?prefix=a&ca=/etc/p@th/ca.pem", "rediss://[::1]:6379,h/0"),
        ("rediss://:pa?ca=/ss@cache/0", "rediss://cache/0"),
        ("u:p@cache", "cache"),
        ("file:///var/lib/hotplate", "file:///var/lib/hotplate"),
        ("/var/lib/hotplate", "/var/lib/hotplate"),
    ],
)
def test_harmless_url_parts_are_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


def connect_to(store_type: type, monkeypatch: pytest.MonkeyPatch) -> object:
    """Open a store of an installed package."""
    entry = EntryPoint("third", "builtins:object", "hotplate.stores")
    monkeypatch.setattr(EntryPoint, "load", lambda _: lambda _url: store_type())
    monkeypatch.setattr("hotplate.stores.connect.entry_points", lambda **_: EntryPoints([entry]))
    return connect("third:///lists")


@pytest.mark.parametrize("bases", [(), (Store,)])
@pytest.mark.parametrize("lacking", ["records", "seal"])
def test_store_without_a_method_is_refused_when_it_is_opened(
    bases: tuple[type, ...], lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = dict.fromkeys(("batch", "coalesce", *(name for name in dir(Store) if not name.startswith("_"))))
    complete = type("Complete", bases, members)
    assert isinstance(connect_to(complete, monkeypatch), complete)
    del members[lacking]
    with pytest.raises(StoreMisused, match=rf"third:// does not fit this hotplate: .*{lacking}\b.*; upgrade its"):
        connect_to(type("Incomplete", bases, members), monkeypatch)


def test_subclass_of_store_names_its_missing_methods_at_construction() -> None:
    incomplete = type("Incomplete", (Store,), {})
    with pytest.raises(TypeError, match=r"Incomplete .*seal.*swap"):
        incomplete()


@pytest.mark.parametrize("opener", ["no_such_module:open_url", "hotplate.stores.urls:no_such_function"])
def test_a_broken_package_of_a_store_is_one_sentence(opener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = EntryPoints([EntryPoint("broken", opener, "hotplate.stores")])
    monkeypatch.setattr("hotplate.stores.connect.entry_points", lambda **_: entries)
    with pytest.raises(StoreMisused, match=r"the package of the store broken:// cannot be loaded: .*no_such"):
        connect("broken:///lists")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite:///lists", "the store sqlite:// does not accept 'sqlite:///lists': no table in '/lists'"),
        ("sqlite://u:secret@host/lists", "the store sqlite:// does not accept 'sqlite://host/lists'"),
        ("sqlite:///lists?key=secret", "the store sqlite:// does not accept 'sqlite:///lists'"),
    ],
)
def test_url_that_an_installed_store_does_not_accept_is_one_sentence(
    url: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_url(url: str) -> object:
        raise ValueError(f"no table in {url.removeprefix('sqlite://')!r}")

    monkeypatch.setattr(EntryPoint, "load", lambda _: open_url)
    entries = EntryPoints([EntryPoint("sqlite", "builtins:object", "hotplate.stores")])
    monkeypatch.setattr("hotplate.stores.connect.entry_points", lambda **_: entries)
    with pytest.raises(StoreMisused) as refusal:
        connect(url)
    assert str(refusal.value) == complaint


def test_unescaped_secret_is_refused_with_its_escaped_form() -> None:
    for url in ("redis://:a/b@cache/0", "redis://:a?b@cache/0", "redis://:a#b@cache/0", "redis://:a[b@cache/0"):
        with pytest.raises(StoreMisused, match=r"ends in redis://cache/0 cannot be understood: write / \? # .* as %2F"):
            connect(url)
    assert split("redis://:a%2Fb@cache/0").password == "a%2Fb"


@pytest.mark.parametrize(
    "start", ["rediss://u:secret@host:6380/0", "rediss+cluster://host,[::1]:6380/", "rediss://host"]
)
def test_path_of_the_authority_may_hold_an_at(start: str, tmp_path: Path) -> None:
    (tmp_path / "r@ot").mkdir()
    ca = tmp_path / "r@ot" / "ca.pem"
    with pytest.raises(StoreMisused, match=r"which should certify .*host.*, does not exist") as refused:
        connect(f"{start}?prefix=a&ca={ca}")
    assert str(ca) in str(refused.value)
    assert "secret" not in str(refused.value)
    ca.touch()
    connect(f"{start}?prefix=a&ca={ca}")
