"""Tables of the command on terminals of any width."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Sequence

import pytest
from rich.console import Console

from hotplate.cli.terminal import table
from tests.support.command import hotplate_process

HEADINGS = ("release", "state", "begun", "note")
ROWS = [
    ("20261129T044115Z-abf2", "live", "2026-11-29 04:41:15Z", None),
    (
        "20261129T044120Z-d860",
        "refused by overlap@10, popular_length_kept",
        "2026-11-29 04:41:20Z",
        "0.25 is below 0.5 (of 2 users, with 20261129T044115Z-abf2)",
    ),
    ("an-id-of-a-user-of-a-shop-that-counts-with-letters", "ready", "", "https://shop.example/page?number=1234567890"),
]


def printed(width: int, headings: Sequence[str] = HEADINGS, rows: Sequence[Sequence[str | None]] = ROWS) -> str:
    stream = io.StringIO()
    Console(width=width, file=stream, soft_wrap=True).print(table(headings, rows))
    return stream.getvalue()


@pytest.mark.parametrize("width", [1, 30, 60, 80, 120])
def test_no_table_breaks_a_word(width: int) -> None:
    words = set(printed(width).split())
    for row in (HEADINGS, *ROWS):
        assert words.issuperset(" ".join(filter(None, row)).split())


def test_no_table_breaks_a_word_of_wide_characters() -> None:
    title = "海辺 の カフカ 上 下"
    for width in range(12, 40):
        words = set(printed(width, ("item", "score", "title"), [("1", "0.9", title)]).split())
        assert words.issuperset(title.split())


def test_a_table_that_is_too_wide_is_printed_as_several_with_its_ids() -> None:
    whole = printed(200)
    assert whole.count(ROWS[0][0]) == 2, "in the first column, and in a note"
    split = printed(80)
    assert split.count("\nan-id-of-") == 3
    assert max(len(line.rstrip()) for line in printed(100).splitlines()) <= 100
    assert "\n\nrelease " in split
    assert whole.count("\n") == 1 + len(ROWS)


@pytest.mark.parametrize("verb", [["--help"], ["plan", "--users", "1000", "--peak-rps", "5"]], ids=["help", "report"])
def test_a_terminal_of_unknown_size_has_80_columns(verb: list[str]) -> None:
    shown = [hotplate_process(*verb, COLUMNS=columns).stdout for columns in ("0", "80")]
    assert shown[0] == shown[1]
    assert shown[0]


@pytest.mark.parametrize(
    ("environment", "is_styled"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
    ids=["xterm", "dumb", "NO_COLOR"],
)
def test_help_on_a_terminal_is_styled_as_its_environment_says(environment: dict[str, str], *, is_styled: bool) -> None:
    terminal, writer = pty.openpty()
    command = [sys.executable, "-m", "hotplate", "keys", "list", "--help"]
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    subprocess.run(command, stdout=writer, check=True, env=plain | environment)
    shown = os.read(terminal, 1 << 16)
    os.close(writer)
    os.close(terminal)
    assert b"Usage:" in shown
    assert (b"\x1b[" in shown) == is_styled
