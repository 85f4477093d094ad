"""`hotplate users`: an erased user gets no list any more, and what holds the user still is named."""

import asyncio
from pathlib import Path

from hotplate.stores.event_log import LogSegment
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.service import a_list, publish_lists


def test_users_are_erased_and_what_holds_them_is_named(tmp_path: Path) -> None:
    folder, backup = tmp_path / "store", tmp_path / "backup"
    store = ("--store", f"file://{folder}")
    release = asyncio.run(publish_lists(folder, {"user:u7": a_list("a"), "user:u8": a_list("b")}))
    assert succeeded("store", "backup", backup, *store)
    assert json_of("lookup", "u7", "--json", *store)["source"] == "personal"
    printed = succeeded("users", "erase", "u7", *store, "--backup", backup)
    assert f"1 user of 1 are erased from file://{folder}" in printed
    assert f"release {release} holds 'u7' until it is pruned" in printed
    assert f"{backup} holds 'u7'" in printed
    assert "not searched: other stores, model folders, events" in printed
    assert json_of("lookup", "u7", "--json", *store)["source"] == "popular"
    assert succeeded("store", "restore", backup, *store, "--over")
    assert json_of("lookup", "u7", "--json", *store)["source"] == "popular"
    assert succeeded("releases", "verify", *store)
    found = json_of("users", "find", "u7", "u8", "--json", *store)
    assert (found["erased"], found["store"]) == (["u7"], f"file://{folder}")
    failed(hotplate("users", "erase", "u7", "--store", f"file://{tmp_path}/none"), "Nothing was ever published")


def test_folders_that_hold_nothing_to_look_into_are_refused(tmp_path: Path) -> None:
    folder, events = tmp_path / "store", tmp_path / "events"
    store = ("--store", f"file://{folder}")
    asyncio.run(publish_lists(folder, {"user:u7": a_list("a")}))
    for option in ("--backup", "--model", "--events"):
        failed(hotplate("users", "erase", "u7", *store, option, tmp_path / "none"), "does not exist", code=2)
    events.mkdir()
    for option in ("--backup", "--model"):  # before anything is erased: it was erased without a report
        failed(hotplate("users", "erase", "u7", *store, option, events))
    assert json_of("users", "find", "u7", "--json", *store)["erased"] == []
    failed(hotplate("users", "find", "u7", *store, "--backup", events), "ever published to")
    segment = LogSegment(events)
    segment.append([b"{}"])
    printed = succeeded("users", "find", "u7", *store, "--events", events)
    segment.close()
    assert "open segments of events" in printed
