"""Path options of every verb: URLs are read where supported, and never taken for local folders."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hotplate.cli.main import command
from hotplate.stores.event_log import LogSegment, line_of
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.interactions import write


def options(name: str, command: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 -- a command of click
    """Yield the verb, and the parameter, of every option and argument."""
    for inner, subcommand in getattr(command, "commands", {}).items():
        yield from options(f"{name} {inner}".strip(), subcommand)
    for parameter in command.params if name else ():
        yield name, parameter


def local_options() -> Iterator[list[str]]:
    """Yield the words that give a value to each option that is a path of this machine alone."""
    for verb, parameter in options("", command()):
        setting = getattr(getattr(parameter.type, "func", None), "__self__", None)
        if setting is not None and setting.value_type is Path and not setting.declaration.urls:
            named = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
            yield [*verb.split(), *named]


def test_url_is_not_taken_for_a_local_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked = set[str]()
    for words in local_options():
        failed(hotplate(*words, "az://events/backup"), "az://events/backup is a URL", code=2)
        checked.add(" ".join(words))
    assert checked > {"train --out", "store backup", "store restore", "users find --backup", "serve --events"}
    assert list(tmp_path.iterdir()) == []


def test_paths_of_environment_and_pipeline_are_checked_too(tmp_path: Path, clicks: Path) -> None:
    failed(hotplate("train", clicks, HOTPLATE_MODEL="az://models/one"), "az://models/one is a URL", code=2)
    failed(hotplate("train", clicks, "--out", "simplecache::az://models/one"), "models/one is a URL", code=2)
    keys = ("keys", "list")
    failed(hotplate(*keys, HOTPLATE_KEYS="s3://secrets/keys.json"), "s3://secrets/keys.json is a URL", code=2)
    text = f'[train]\ndata = "{clicks}"\n[publish]\nstore = "file://{tmp_path}/store"\n[run]\nwork = "az://runs"\n'
    failed(hotplate("run", write(tmp_path / "nightly.toml", text)), "work: az://runs is a URL", code=2)


@pytest.mark.parametrize("words", [("evaluate", "report"), ("publish",)])
def test_a_model_at_a_url_is_refused(words: tuple[str, ...], tmp_path: Path) -> None:
    store = ("--store", f"file://{tmp_path}/store") if words == ("publish",) else ()
    failed(hotplate(*words, "az://models/one", *store), "az://models/one is a URL", code=2)


def test_a_named_list_at_a_url_is_refused(tmp_path: Path) -> None:
    arguments = ("--list", "home=az://models/one", "--store", f"file://{tmp_path}/store")
    failed(hotplate("publish", *arguments), "az://models/one is a URL", code=2)


@pytest.fixture
def memory() -> Iterator[Any]:
    """An fsspec file system in this process, empty at the end."""
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def test_data_rules_and_truth_are_read_from_urls(memory: Any, clicks: Path, model: Path, tmp_path: Path) -> None:  # noqa: ANN401 -- untyped
    memory.pipe("/shop/clicks.csv", clicks.read_bytes())
    memory.pipe("/shop/never.txt", b"p01\n")
    memory.pipe("/shop/items.csv", b"item,price\np02,5\np03,-\n")
    memory.pipe("/shop/lists.csv", b"user,item,score\nu001,p01,1\n")
    store = f"file://{tmp_path}/store"
    no_search = ("--engine", "popularity", "--no-tune")
    assert "of memory://shop/clicks.csv" in succeeded(
        "train", "memory://shop/clicks.csv", *no_search, "--out", tmp_path / "m"
    )
    rules = ("--exclude", "memory://shop/never.txt", "--item-attributes", "memory://shop/items.csv")
    assert "memory://shop/items.csv, row 3" in succeeded("publish", model, *rules, "--store", store)
    succeeded("import", "memory://shop/lists.csv", "--store", f"{store}2")
    memory.pipe("/shop/truth.csv", b"user,item\nu001,p01\nu002,p02\n")
    assert "of memory://shop/truth.csv" in succeeded("evaluate", "memory://shop/lists.csv", "memory://shop/truth.csv")


@pytest.mark.usefixtures("memory")
def test_shipped_events_are_searched_by_their_url(tmp_path: Path) -> None:
    log = tmp_path / "events"
    log.mkdir()
    segment = LogSegment(log)
    segment.append([line_of(b'{"id":"1","time":1.0,"type":"click","user":"u7","items":["a"],"role":"live"}')])
    segment.close()
    succeeded("events", "ship", log, "--to", "memory://shop/log")
    write(tmp_path / "lists.csv", "user,item,score\nu7,a,1\n")
    store = ("--store", f"file://{tmp_path}/store")
    succeeded("import", tmp_path / "lists.csv", *store)
    facts = json_of("users", "find", "u7", "u8", *store, "--events", "memory://shop/log")
    assert facts["elsewhere"] == {"memory://shop/log": ["u7"]}
    missing = hotplate("users", "erase", "u7", *store, "--events", "memory://shop/nothing")
    failed(missing, "folder memory://shop/nothing does not exist", code=2)
    assert json_of("users", "find", "u7", *store)["erased"] == []


@pytest.mark.parametrize(
    "arguments",
    [("events", "report"), *(("users", "find", "u7", option) for option in ("--backup", "--model", "--events"))],
    ids=lambda arguments: arguments[-1],
)
def test_a_file_in_place_of_a_folder_is_called_a_file(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file = tmp_path / "segment.jsonl"
    file.write_text("{}")
    failed(hotplate(*arguments, file), f"{file} is a file; name ", code=2)


def test_an_unknown_scheme_is_named(tmp_path: Path) -> None:
    failed(hotplate("train", "foo://shop/clicks.csv", "--out", tmp_path / "m"), "fsspec knows no foo://", code=2)
