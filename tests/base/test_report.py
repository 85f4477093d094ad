import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hotplate.base.report import (
    Column,
    Curve,
    Plot,
    Report,
    Row,
    format_count,
    format_value,
    from_json,
    print_report,
    rounded,
    to_json,
    write_file,
)
from tests.support.processes import run_process

TEXT = st.text(max_size=20)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.builds(
    Row, TEXT, TEXT, st.sampled_from(["us", "share", "/s", "USD/month", ""]), st.none() | NUMBER,
    st.lists(NUMBER, max_size=3).map(tuple), st.none() | NUMBER, st.none() | NUMBER, TEXT, st.booleans(),
)  # fmt: skip
COLUMNS = st.builds(Column, TEXT, TEXT, st.sampled_from(["", "ms", "%"]), st.integers(1, 5), st.booleans())
REPORTS = st.builds(
    Report, kind=TEXT, sentence=TEXT, rows=st.lists(ROWS, max_size=5).map(tuple),
    columns=st.lists(COLUMNS, max_size=3).map(tuple),
    marks=st.dictionaries(TEXT, TEXT, max_size=2), verdicts=st.dictionaries(TEXT, TEXT, max_size=2),
    notes=st.lists(TEXT, max_size=2).map(tuple),
    broken=st.lists(TEXT, max_size=2).map(tuple), interrupted=st.booleans(),
    configuration=st.dictionaries(TEXT, NUMBER, max_size=2),
    extra=st.just({}) | st.just({"runs": [1, 2]}),
)  # fmt: skip
CURVES = (Curve(r"a $\x$ b", (1.0, 2.0), (1.0, 2.0)), Curve("c", (1.0, 2.0), (2.0, 1.0)))
RU = Report(
    kind="ru",
    sentence="4,000 reads/s <within> p99 10 ms",
    rows=(
        Row("400 RU/s", "reads/s", "/s", 400.2, low=399.0, high=401.0),
        Row("400 RU/s", "p99", "us", 10_300.0, note="assumed"),
        Row("11,000 RU/s", "reads/s", "/s", 11_000.0, note="COMPUTED"),
        Row("11,000 RU/s", "p99", "us", None, note="not driven"),
        Row("400 RU/s", "lag p99", "us", 80.0, main=False),
    ),
    plots=(Plot("p99", "reads/s", "p99", (Curve("400 RU/s", (1.0, 2.0), (3.0, None)),), y_unit="us", log_y=True),),
)


@pytest.mark.parametrize(("count", "text"), [(0, "0 users"), (1, "1 user"), (2_000, "2,000 users")])
def test_counts_have_singular_and_plural_nouns(count: int, text: str) -> None:
    assert format_count(count, "user") == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4, "us", "0.4 µs"), (412.0, "us", "412 µs"), (2_320.0, "us", "2.32 ms"), (999_900.0, "us", "1 s"),
        (0.0063, "share", "0.63 %"), (0.0, "share", "0 %"), (12_345.6, "/s", "12,346/s"), (0.67, "USD", "0.67 USD"),
        (1.0, "", "1"), (1.0, "ms", "1 ms"), (1.0, "hours", "1 hour"), (300.0, "USD/month", "300 USD/month"),
        (1.0, "us", "1 µs"), (1.0, "µs", "1 µs"), (1.0, "s", "1 s"), (1.0, "RU", "1 RU"), (1.0, "rounds", "1 round"),
        (1.0, "services", "1 service"), (1.0, "stores", "1 store"), (1.0, "/s", "1/s"), (1.0, "users/s", "1 users/s"),
    ],
)  # fmt: skip
def test_values_have_three_digits_and_a_suitable_unit(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@settings(max_examples=30)
@given(REPORTS)
def test_report_round_trips_through_json(report: Report) -> None:
    assert from_json(json.loads(json.dumps(to_json(report)))) == report


@settings(max_examples=30)
@given(REPORTS)
def test_any_report_is_printed_and_laid_out(report_page: ModuleType, report: Report) -> None:
    print_report(report, Console(file=io.StringIO(), width=100))
    assert report_page.page(report).count("<h1>") == 1


def test_the_terminal_shows_each_main_figure_once() -> None:
    text = printed(Report(kind="ru", sentence=RU.sentence, rows=RU.rows), width=160)
    assert [text.count(phrase) for phrase in ("10.3 ms", "assumed", "COMPUTED", "not driven", "80 µs")] == [
        1, 1, 1, 1, 0,
    ]  # fmt: skip


def printed(report: Report, width: int) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=width))
    return out.getvalue()


TABLE = Report(
    kind="stores",
    sentence="Fastest and cheapest: files on each server (p99 1.6 ms, Redis 2.3), as far as this machine says.",
    rows=(
        Row("files", "p99", "us", 1_554.0, low=1_290.0, high=1_870.0),
        Row("files", "cost", "USD", 0.86, note="CPU only"),
        Row("Redis", "p99", "us", 2_340.0), Row("Redis", "cost", "USD", 1_234.0, note="2 x B0"),
        Row("Cosmos DB", "p99", "us", 11_096.0, mark="*"), Row("Cosmos DB", "cost", "USD", 36.96, note="1,200 RU/s"),
        Row("azure-cosmos", "p99", "us", None), Row("azure-cosmos", "cost", "USD", 60.0),
        Row("azure-cosmos", "hidden", "us", 5.0),
    ),
    columns=(
        Column("p99", "p99\nms", "ms"), Column("cost", "USD per\n10^9 reads"), Column("cost", "paid for", noted=True)
    ),
    marks={"*": "assumed: the emulator waits", "=": "computed"},
    verdicts={"p99": "files fastest"},
    origins={"measured": "14 rounds of 1 s at 800/s", "besides": "regions, failover and replica lag: docs/stores.md"},
)  # fmt: skip


def test_a_table_has_one_line_for_each_subject_after_the_answer() -> None:
    assert printed(TABLE, width=80).splitlines() == [
        "Fastest and cheapest: files on each server (p99 1.6 ms, Redis 2.3), as far as",
        "this machine says.",
        "",
        "                p99     USD per",
        "                 ms  10^9 reads  paid for",
        "files           1.6        0.86  CPU only",
        "Redis           2.3       1,200  2 x B0",
        "Cosmos DB      11 *          37  1,200 RU/s",
        "azure-cosmos      —          60",
        "* assumed: the emulator waits",
        "",
        "p99       files fastest",
        "measured  14 rounds of 1 s at 800/s",
        "besides   regions, failover and replica lag: docs/stores.md",
    ]


def test_columns_without_room_follow_as_further_tables() -> None:
    lines = printed(TABLE, width=32).splitlines()
    assert max(map(len, lines)) <= 32
    start = lines.index("")
    assert lines[start : start + 14] == [
        "",
        "                p99     USD per",
        "                 ms  10^9 reads",
        "files           1.6        0.86",
        "Redis           2.3       1,200",
        "Cosmos DB      11 *          37",
        "azure-cosmos      —          60",
        "",
        "              paid for",
        "files         CPU only",
        "Redis         2 x B0",
        "Cosmos DB     1,200 RU/s",
        "azure-cosmos",
        "* assumed: the emulator waits",
    ]


def test_a_long_note_is_folded_and_no_part_of_it_is_left_out() -> None:
    sku = "".join(map(str, range(30)))
    columns = (Column("cost", "paid for", noted=True),)
    report = Report(kind="stores", sentence="", rows=(Row("Redis", "cost", "", 1.0, note=sku),), columns=columns)
    words = printed(report, width=30).split()
    assert "".join(words) == f"paidforRedis{sku}"


def test_a_long_subject_is_folded_and_no_figure_is() -> None:
    url = "redis://cache-primary.example.internal:6379/0"
    rows = [Row(url, f"figure {number}", "", 1000.0 * number) for number in range(1, 7)]
    columns = [Column(row.figure, row.figure) for row in rows]
    text = printed(Report(kind="stores", sentence="", rows=tuple(rows), columns=tuple(columns)), width=80)
    assert "".join(line.split(" ")[0] for line in text.splitlines()) == url + url
    assert [text.count(f"{number},000") for number in range(1, 7)] == [1] * 6


def test_the_page_shows_the_table_with_intervals_and_marks(report_page: ModuleType) -> None:
    text = report_page.page(TABLE)
    assert "1.6<small>1.3 … 1.9</small>" in text
    assert "11&nbsp;*" in text
    assert "* assumed: the emulator waits" in text
    assert ">2&nbsp;x&nbsp;B0</td>" in text
    assert ">—</td>" in text, "it has no value"
    assert "computed" not in text
    assert "<dt>besides</dt>" in text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.374, 2, "0.37"), (9.96, 2, "10"), (99.6, 2, "100"), (1_140.0, 2, "1,100"), (396.4, 5, "396"), (0.0, 2, "0")],
)
def test_cells_have_significant_digits(value: float, digits: int, text: str) -> None:
    assert rounded(value, digits) == text


def test_only_a_report_with_plots_needs_matplotlib() -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from hotplate.base.report import Column, Report, Row\n"
        "from hotplate.base.report_page import brief, page\n"
        "rows, columns = (Row('a', 'p99', 'ms', 2.0),), (Column('p99', 'p99'),)\n"
        "report = Report(kind='x', sentence='Good.', rows=rows, columns=columns)\n"
        "print('<h1>Good.</h1>' in page(report), brief(report))"
    )
    shown = run_process(sys.executable, "-c", program).stdout
    assert shown.startswith("True <p>Good.</p>")
    assert '<td data-figure="p99">2.0</td>' in shown


def test_the_page_keeps_the_letters_of_any_script(report_page: ModuleType) -> None:
    title = "東京\u3000店 Déjà\u00a0vu क्\u200dष"
    text = report_page.page(Report(kind="x", sentence=f"{title}\x07\udcff", plots=(Plot("", "", "", CURVES),)))
    assert f"<h1>{title}\ufffd\ufffd</h1>" in text
    assert text.count(CURVES[0].name) == 2, "a label is not a formula"


def test_exit_code_is_3_for_a_bad_report_and_1_for_an_unmeasured_one() -> None:
    assert Report(kind="a", sentence="").exit_code == 0
    assert Report(kind="a", sentence="", broken=("popular",)).exit_code == 3
    assert Report(kind="a", sentence="", broken=("popular",), failures=("late",)).exit_code == 1
    assert Report(kind="a", sentence="", interrupted=True).exit_code == 1


def test_files_are_written_beside_each_other(report_page: ModuleType, tmp_path: Path) -> None:
    report_page.save(RU, tmp_path / "ru.2026")
    assert {path.name for path in tmp_path.iterdir()} == {"ru.2026.json", "ru.2026.html"}
    assert from_json(json.loads((tmp_path / "ru.2026.json").read_text())).row("400 RU/s", "p99") == RU.rows[1]


def test_a_pipe_is_written_to_and_a_link_and_a_mode_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as threads:
        read = threads.submit(pipe.read_text)
        write_file(pipe, "page")
        assert (read.result(), pipe.is_fifo()) == ("page", True)

    page = tmp_path / "page.html"
    link = tmp_path / "link.html"
    page.touch(0o640)
    link.symlink_to(page)
    write_file(link, "page")
    assert (link.is_symlink(), page.read_text(), page.stat().st_mode & 0o777) == (True, "page", 0o640)
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/none/page'"):
        write_file(tmp_path / "none" / "page", "page")


def _save_often(text: str, path: Path, start: Barrier) -> None:
    start.wait()
    for _ in range(200):
        write_file(path, text)


def test_processes_that_write_one_report_leave_it_whole(report_page: ModuleType, tmp_path: Path) -> None:
    """Drafts of one name were removed under the other process, whose rename then failed."""
    text = report_page.page(RU)
    context = get_context("fork")
    path = tmp_path / "ru.html"
    start = context.Barrier(2)
    writers = [context.Process(target=_save_often, args=(text, path, start)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert path.read_text("utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format"):
        from_json({**to_json(RU), "format": 2})
