"""`hotplate bench http` and `compare` against a real service: reports, comparisons and failures."""

import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from hotplate.base.report import Report, from_json, print_report, rounded, to_json
from hotplate.bench import http
from hotplate.bench.errors import BenchFailed, BenchMisused
from hotplate.bench.http import HttpRuns, make_plan
from hotplate.bench.http_report import report as render
from hotplate.bench.loadgen.generator import LoadWorker
from hotplate.bench.loadgen.load import Gets, Load
from hotplate.bench.loadgen.result import ResponseSample, Result
from hotplate.bench.measure.lists import CheckResult, check_answers, check_samples
from hotplate.bench.measure.objective import parse_objective
from hotplate.bench.measure.search import Trial
from hotplate.bench.options import HttpOptions
from hotplate.bench.verdict import Finding, Gravity, concluded
from hotplate.serve.access.keys import create
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import opened, run_on
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.store import ReadResult
from tests.support.command import failed, hotplate
from tests.support.http_server import handled_by, http_server
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import running as redis_running
from tests.support.service import Service, a_list, publish_lists, publish_through, published, running, serving
from tests.support.soak import in_soak
from tests.support.virtual import ANSWER, EndingWorker, delayed, simulate

USERS = 40
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "store"
    lists = {f"user:{n}": a_list(*(f"i{n}-{place}" for place in range(20))) for n in range(USERS)}
    published(folder, lists)
    return folder


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Service]:
    with running(store) as started:
        yield started


@pytest.fixture(scope="module")
def load_worker() -> Iterator[LoadWorker]:
    with LoadWorker() as started:
        yield started


@pytest.fixture
def warm_worker(load_worker: LoadWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let measurements use a load generator that was started for all tests of this file.

    It may wait for a core of a busy machine all the time, which would make a run invalid.
    """
    monkeypatch.setattr(http, "LoadWorker", lambda: nullcontext(load_worker))
    monkeypatch.setattr("hotplate.bench.loadgen.result.CPU_BOUND", math.inf)


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return hotplate("bench", *arguments)


def test_a_measurement_leaves_a_report_in_two_forms(service: Service, store: Path, tmp_path: Path) -> None:
    name = tmp_path / "report"
    done = bench(
        "http", service.url, "--store", f"file://{store}", "--rate", "600", "--duration", "0.4s", "--repeat", "5",
        "--warmup", "0.1s", "--unknown", "20%", "--zipf", "0.9", "--out", name,
    )  # fmt: skip
    assert "0 wrong" in done.stdout, done.stderr
    report = from_json(json.loads(name.with_suffix(".json").read_text()))
    assert done.returncode == report.exit_code
    rounds = report.extra["rounds"]
    assert [counts["due"] for counts in rounds] == [240] * 5
    assert all(counts["ok"] == 240 and counts["errors"] == {} for counts in rounds)
    assert report.extra["checked"]["compared"] == 1200
    assert report.machine["commit"]
    p99 = report.row(service.url, "p99")
    rate = report.row(service.url, "rate")
    assert p99 is not None
    assert rate is not None
    assert p99.value is not None
    assert rate.values == pytest.approx([240 / counts["duration_s"] for counts in rounds])
    assert rate.value == pytest.approx(sum(rate.values) / 5)
    assert all(counts["duration_s"] >= 0.4 for counts in rounds)
    assert len(p99.values) == 5
    page = name.with_suffix(".html").read_text()
    assert page.count("<figure>") == 2
    assert done.stdout.startswith(report.sentence)
    assert f">{rounded(p99.value / 1000)}<" in page
    assert done.stderr.splitlines()[:2] == ["warm-up", "round 1 of 5"]


URL = "http://simulated:80"


def measured(rate: float = 300, answer: bytes = ANSWER) -> Result:
    """Return a run of a service that answers in 1 ms, by a generator that is never late."""
    load = Load(url=URL, requests=Gets("/"), rate=rate, duration_s=0.5)
    return simulate(load, lambda arrival_s: arrival_s + 0.001, respond=lambda *_: answer)


def report_of(*rounds: Result, slo: str | None = None, checked: CheckResult | None = None) -> Report:
    plan = make_plan(HttpOptions(url=URL, users=USERS, slo=slo))
    return render(HttpRuns(plan, (), rounds, checked, interrupted=False))


def test_the_first_users_of_a_store_are_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {f"user:{user}": a_list("i1") for user in range(USERS)}
    published(tmp_path / "full", lists)
    monkeypatch.setattr(http, "MAX_USERS", 3)
    keys = make_plan(HttpOptions(url=URL, store=f"file://{tmp_path / 'full'}")).keys
    assert keys is not None
    assert keys.ids == ("0", "1", "10")

    release = published(tmp_path / "popular", {})
    with pytest.raises(BenchMisused, match=f"the release {release} holds no user's list"):
        make_plan(HttpOptions(url=URL, store=f"file://{tmp_path / 'popular'}"))


def test_help_names_the_objective_of_a_search() -> None:
    usual = make_plan(HttpOptions(url=URL, users=USERS)).objective
    searched = make_plan(HttpOptions(url=URL, users=USERS, find_max=True)).objective
    assert usual == parse_objective("errors=0.1%")
    assert searched == parse_objective("p99=5ms,errors=0.1%")
    shown = " ".join(hotplate("bench", "http", "--help", COLUMNS="100").stdout.split())
    assert "by default errors=0.1%, with --find-max p99=5ms,errors=0.1%." in shown


def test_statuses_of_errors_are_named() -> None:
    """They were "15 status"."""
    (reason,) = report_of(measured(30, b"HTTP/1.1 503 -\r\nContent-Length: 0\r\n\r\n")).broken
    assert reason == "100.00% of the requests got no good answer (status 503: 15), bound 0.10%"


def test_a_failing_service_is_named_before_a_late_generator() -> None:
    """The first line of a killed service's report blamed the generator only."""
    result = delayed(measured(30), 0.1)
    killed = replace(result, seconds=(*result.seconds, replace(result.seconds[-1], latencies_s=result.latencies_s[:0])))
    report = report_of(killed)
    assert report.sentence.startswith("There is no verdict: 50.00% of the requests got no good answer ")
    assert "; round 1: the generator itself was 100 ms late at p99" in report.sentence
    assert report.exit_code == 1


def test_one_late_round_of_six_is_left_out_and_named() -> None:
    """It refused the verdict of all rounds."""
    late, in_time = delayed(measured(), 0.1), measured()
    report = report_of(late, *[in_time] * 5, slo="p50=5ms")
    assert report.exit_code == 0, report.failures
    assert report.sentence.startswith("Within the objective: p50 1.0 ms of 5 ms")
    assert "1 of 6 rounds is left out, as the generator was late." in report.notes
    assert report_of(late, *[in_time] * 4, slo="p50=5ms").exit_code == 1


def test_unsolicited_bytes_are_named_in_the_text() -> None:
    """They were only in the JSON report."""
    notes = report_of(replace(measured(), unsolicited=3)).notes
    assert any(note.startswith("3 connections sent bytes that were no answer") for note in notes)


class EarlyHints(BaseHTTPRequestHandler):
    """A service that sends a 1xx response before each answer."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_server_that_answers_something_else_is_not_called_silent() -> None:
    """It was "nothing answers", as for one that is down, and so were servers without TLS."""
    with handled_by(EarlyHints) as url:
        secure = url.replace("http:", "https:")
        failed(bench("http", url, "--users", "9"), f"{url} answers, but not as HTTP/1.1")
        failed(bench("http", secure, "--users", "9"), f"{secure} has no valid TLS")


def test_lateness_of_all_rounds_is_named_as_their_p99() -> None:
    """It was "up to 15 ms", below the 18 ms of a round."""
    notes = report_of(measured(), delayed(measured(), 0.015), delayed(measured(), 0.018)).notes
    assert "The generator itself was 18 ms late at p99; that is part of the latencies." in notes


def test_a_report_compared_with_itself_shows_no_difference(report_page: ModuleType, tmp_path: Path) -> None:
    fixed = report_of(*[measured(1_000)] * 5)
    assert fixed.sentence == (
        "p99 is 1.0 ms at 1,000 answers/s, no errors. How sure: p99 1 ms to 1 ms (95 % interval over 5 "
        "rounds). Assumed: users requested equally often (--zipf draws some more often), the lists are right "
        "(--store compares them)."
    )
    assert "How sure: unknown, fewer than 5 rounds or seconds. " in report_of(measured(4_000)).sentence
    report_page.save(fixed, tmp_path / "report")
    compared = bench("compare", tmp_path / "report.json", tmp_path / "report.json")
    assert compared.returncode == 0, compared.stderr
    assert "No difference that matters" in compared.stdout


@pytest.mark.usefixtures("warm_worker")
def test_a_search_and_a_sweep_report_their_knees(service: Service, tmp_path: Path) -> None:
    common = ("--users", str(USERS), "--duration", "0.2s", "--warmup", "0s", "--json", "--out", tmp_path / "report")
    searched = json.loads(
        bench("http", service.url, "--find-max", "--slo", "p50=0.001ms", "--rate", "200", *common).stdout
    )
    assert searched["search"]["highest"] is None
    assert not searched["search"]["points"][0]["inside"]
    assert "no rate was inside" in (tmp_path / "report.html").read_text()
    done = bench("http", service.url, "--batch", "1,20", "--slo", "errors=100%", *common)
    swept = json.loads(done.stdout)
    assert [point["at"] for point in swept["sweep"]["points"]] == [1, 20]
    assert swept["sweep"]["knee"] in {1, 20}
    assert {row["subject"] for row in swept["rows"]} == {"batch of 1", "batch of 20"}
    page = (tmp_path / "report.html").read_text()
    assert "batch of 20" in page
    assert "Latency over batch size" in page


AT_ONCE = threading.BoundedSemaphore(2)


def few_batches(_path: str, _headers: Message, sent: bytes) -> tuple[int, bytes]:
    """Refuse a batch while two others are answered."""
    if not sent:
        return 200, b'{"source":"personal"}'
    if not AT_ONCE.acquire(blocking=False):
        return 503, b""
    time.sleep(0.005)
    AT_ONCE.release()
    lists = [{"user": user, "source": "personal", "items": [{}]} for user in json.loads(sent)["users"]]
    return 200, json.dumps({"results": lists}, separators=(",", ":")).encode()


@pytest.mark.usefixtures("warm_worker")
def test_a_service_that_refuses_parallel_batches_gets_fewer(tmp_path: Path) -> None:
    """Each size ended with 503s and exit code 3, and no size was recommended."""
    with http_server(few_batches) as url:
        options = ("--warmup", "0s", "--duration", "0.3s")
        done = bench("http", url, "--users", "9", "--batch", "1,20", *options, "--json", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stdout
    report = from_json(json.loads(done.stdout))
    assert [point["parallel"] for point in report.extra["sweep"]["points"]] == [1, 1]
    assert report.extra["sweep"]["knee"] in {1, 20}
    assert all(report.row(f"batch of {size}", "errors").value == 0 for size in (1, 20))  # type: ignore[union-attr]  # it has them
    assert "Latency over batch size" in (tmp_path / "report.html").read_text()
    drawn = {curve["name"]: curve["y"] for curve in json.loads(done.stdout)["plots"][0]["curves"]}
    for name in ("p50", "p99"):  # of too few answers a p99 is neither in the table nor drawn
        assert drawn[name] == [report.row(f"batch of {size}", name).value for size in (1, 20)]  # type: ignore[union-attr]  # it has them


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a store that died after the popular list was read."""
    folder = tmp_path_factory.mktemp("dead")
    with redis_running(folder) as server:
        published(server.url(), {f"user:{n}": a_list(f"i{n}") for n in range(USERS)})
        with serving(folder, "--store", server.url()) as started:
            server.kill()
            yield started


@pytest.mark.usefixtures("warm_worker")
@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "100"),
        ("--rate", "100", "--find-max"),
        ("--batch", "1,20", "--slo", "errors=100%"),
    ],
)
def test_a_service_with_a_dead_store_is_broken(dead: Service, arguments: tuple[str, ...], tmp_path: Path) -> None:
    common = ("--users", str(USERS), "--duration", "0.3s", "--warmup", "0s", "--json", "--out", tmp_path / "report")
    done = bench("http", dead.url, *arguments, *common)
    assert done.returncode == 3, done.stderr
    report = from_json(json.loads(done.stdout))
    assert "popular list" in " ".join(report.broken)
    assert not [row for row in report.rows if row.unit in {"us", "/s"}]
    assert report.extra.get("search", {"highest": None})["highest"] is None
    assert "--store URL" in " ".join(report.broken)


@pytest.mark.usefixtures("warm_worker")
def test_users_without_lists_end_a_measurement_before_it_begins(service: Service, tmp_path: Path) -> None:
    """A minute was measured before the first word of it."""
    name = tmp_path / "report"
    strangers = tmp_path / "users"
    strangers.write_text("\n".join(f"stranger-{number}" for number in range(USERS)))
    done = bench("http", service.url, "--keys-file", strangers, "--duration", "1h", "--out", name)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("The users' own lists were not measured")
    assert "--store URL" in done.stdout
    assert not from_json(json.loads(name.with_suffix(".json").read_text())).rows
    assert "were not measured" in name.with_suffix(".html").read_text()


def quick_worker(before: Callable[[], object] = lambda: None) -> EndingWorker:
    """Return a generator that measures a service which answers in 1 ms, and calls *before* at each run."""

    def run(load: Load) -> Result:
        before()
        simulated = Load(url=load.url, requests=Gets("/"), rate=load.rate, duration_s=load.duration_s)
        return simulate(simulated, lambda arrival_s: arrival_s + 0.001)

    return EndingWorker(99, run)


def test_report_that_cannot_be_written_is_printed(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement was lost if its folder could not be written."""
    folder = tmp_path / "results"
    folder.mkdir()
    worker = quick_worker(before=lambda: shutil.rmtree(folder, ignore_errors=True))
    monkeypatch.setattr(http, "LoadWorker", lambda: worker)
    done = bench("http", service.url, "--users", str(USERS), "--out", folder / "report")
    assert done.stdout.startswith("p99 is 1.0 ms at 1,000 answers/s")
    assert done.returncode == 1
    assert "hotplate: No such file or directory: " in done.stderr


def test_ctrl_c_while_answers_are_compared_keeps_the_measurement(
    service: Service, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that had been measured was lost."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    worker = quick_worker(before=lambda: monkeypatch.setattr("hotplate.bench.measure.lists.run_on", stop))
    monkeypatch.setattr(http, "LoadWorker", lambda: worker)
    done = bench("http", service.url, "--store", f"file://{store}", "--out", tmp_path / "report")
    assert done.returncode == 1
    sentence = " ".join(done.stdout.split("\n\n")[0].split())
    assert sentence.startswith(
        "Answers were not compared with the store: the comparison was stopped. p99 is 1.0 ms at "
    )
    assert done.stdout.count("the comparison was stopped") == 1


def test_an_interrupted_start_keeps_the_earlier_report(
    service: Service, report_page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = report_of(measured())
    report_page.save(earlier, tmp_path / "report")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    stopped = EndingWorker(1, lambda load: simulate(load, lambda arrival_s: arrival_s + 0.001))
    monkeypatch.setattr(http, "LoadWorker", lambda: stopped)
    done = bench("http", service.url, "--users", str(USERS), "--out", tmp_path / "report")
    assert (done.returncode, stopped.runs) == (1, 1)
    assert done.stdout.startswith("Nothing was measured.")
    assert "report.json" not in done.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("objective", "code", "words"),
    [
        ("p50=5s", 0, "Within the objective: p50 "),
        ("p50=0.001ms", 3, "Outside the objective: p50 "),
        ("errors=0.5%", 0, "Within the objective: p99 not known"),
        (
            "p99=5s",
            1,
            "There is no verdict: p99 is not known at 300 requests/s (fewer than 10 answers beyond it); give",
        ),
        ("p99=0.1ms", 1, "There is no verdict: p99 is not known at 300 requests/s (fewer than 10 answers beyond it)"),
    ],
)
def test_the_first_line_says_whether_the_objective_is_met(objective: str, code: int, words: str) -> None:
    report = report_of(measured(), slo=objective)
    assert report.exit_code == code
    assert report.sentence.startswith(words)
    assert ("answers/s, no errors." in report.sentence) is (code != 1)


WRONG = CheckResult(compared=333, wrong=108, fallback=0, examples=())
NOT_COMPARED = CheckResult(compared=0, wrong=0, fallback=0, examples=(), failure="the store is down")


@pytest.mark.parametrize(
    ("objective", "checked", "code", "sentence"),
    [
        (
            "p50=5s",
            WRONG,
            3,
            "108 of 333 compared answers were wrong. p50 1.0 ms of 5000 ms at 300 answers/s, no errors.",
        ),
        ("p50=0.001ms", WRONG, 3, "108 of 333 compared answers were wrong. p50 1.0 ms of 0.001 ms at "),
        (
            None,
            WRONG,
            3,
            "108 of 333 compared answers were wrong. p99 is not known (fewer than 10 answers beyond it) at ",
        ),
        ("p99=5s", WRONG, 1, "108 of 333 compared answers were wrong."),
        (
            "p50=5s",
            NOT_COMPARED,
            1,
            "Answers were not compared with the store: the store is down. p50 1.0 ms of 5000 ms",
        ),
    ],
)
def test_the_first_sentence_names_wrong_lists_before_the_objective(
    objective: str | None, checked: CheckResult, code: int, sentence: str
) -> None:
    """It was "Within the objective", in the JSON report, too."""
    found = report_of(measured(), slo=objective, checked=checked)
    assert found.exit_code == code
    assert found.sentence.startswith(sentence)
    assert "Within" not in found.sentence
    assert json.loads(json.dumps(to_json(found)))["sentence"] == found.sentence
    printed = io.StringIO()
    print_report(found, Console(file=printed, width=1_000))
    assert "LOOK OUT: 108" not in printed.getvalue()
    assert "LOOK OUT: answers" not in printed.getvalue()


def test_findings_are_in_the_order_of_their_gravity() -> None:
    """A killed service, wrong lists and a late generator were each named first by a rule of their own."""
    texts = {
        Gravity.OUTSIDE: "p99 8.0 ms, bound 5 ms",
        Gravity.ERRORS: "5% of the requests got no good answer",
        Gravity.UNMEASURED: "the generator was late",
        Gravity.POPULAR: "9 of 10 lists were popular",
        Gravity.UNCOMPARED: "answers were not compared",
        Gravity.WRONG: "1 of 2 compared answers were wrong",
    }
    found = [Finding(gravity, text) for gravity, text in texts.items()]
    measured = Report(kind="http", sentence="")
    while found:
        named = concluded(measured, found, "Within the objective.").sentence
        gravest = found.pop().text
        assert gravest[1:] in named
        assert "Within" not in named
    assert concluded(measured, found, "Within the objective.").sentence == "Within the objective."


@pytest.mark.usefixtures("warm_worker")
def test_service_with_keys_is_not_measured_without_a_key(store: Path, tmp_path: Path) -> None:
    created = create(tmp_path / "keys.json", "bench", ["read"])
    common = (
        "--users",
        str(USERS),
        "--rate",
        "50",
        "--duration",
        "0.3s",
        "--warmup",
        "0s",
        "--out",
        tmp_path / "report",
    )
    with running(store, "--keys", str(tmp_path / "keys.json")) as service:
        failed(bench("http", service.url, *common), "answers 401", "--header X-API-Key:KEY")
        assert not list(tmp_path.glob("report*"))
        bench("http", service.url, *common, "--header", f"X-API-Key:{created.key}")
    report = from_json(json.loads((tmp_path / "report.json").read_bytes()))
    median = report.row(service.url, "p50")
    assert median is not None
    assert len(median.values) == 1
    assert "401" not in " ".join(report.complaints)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("http", "http://127.0.0.1:9", "--users", "5"), 1, "nothing answers at http://127.0.0.1:9"),
        (("http", "http://127.0.0.1:9"), 2, "--users N"),
        (("http", "ftp://x", "--users", "5"), 2, "http://HOST:PORT"),
        (("http", "http://x", "--users", "5", "--out", "/no/such/folder"), 2, "no folder /no/such"),
        (
            ("compare", "/no/such.json", "/no/other.json"),
            2,
            "/no/such.json: no such file or directory; give the name.json",
        ),
        (("http", "http://127.0.0.1:9", "--keys-file", "/no/ids"), 2, "--keys-file: /no/ids: No such file"),
        (
            ("http", "http://127.0.0.1:9", "--store", "redis://127.0.0.1:9/0"),
            1,
            "redis://127.0.0.1:9/0 cannot be reached",
        ),
    ],
)
def test_mistake_gives_one_sentence_and_an_exit_code(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = bench(*arguments)
    assert done.returncode == code, done.stderr
    assert words.lower() in done.stderr.lower()
    assert done.stderr.count("\n") == 1
    as_json = bench(*arguments, "--json")
    assert json.loads(as_json.stderr)["error"]


def test_dead_generator_fails_the_run(service: Service) -> None:
    with LoadWorker() as worker:
        killer = threading.Timer(0.5, os.kill, (worker.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(BenchFailed, match=r"died, perhaps out of memory$"):  # a sentence continues it
            worker.run(Load(url=service.url, requests=Gets("/livez"), rate=100, duration_s=30))


def answered(user: str, items: list[dict[str, Any]], source: str, release: str | None, n: int = 2) -> ResponseSample:
    body = json.dumps({"user": user, "release": release, "source": source, "items": items})
    request = f"GET /v1/recommendations/{user}?n={n} HTTP/1.1\r\n\r\n"
    return ResponseSample(request.encode(), 200, body.encode(), JSON_HEAD, (user,))


def items(*places: int, of: str = "i1-") -> list[dict[str, Any]]:
    return [{"id": f"{of}{at}", "score": 1 / (at + (of != "p")), "title": f"Title {of}{at}"} for at in places]


def answers_of_a_faulty_server(release: str, period: int, phase: int) -> Callable[[float, bytes], bytes]:
    """Return a server that gives another user's list in each answer of a *period*, as one backend of a round robin."""
    counter = itertools.count(phase)

    def respond(_now: float, request: bytes) -> bytes:
        user = int(urlsplit(request.split(b" ")[1]).path.rpartition(b"/")[2])
        owner = user if next(counter) % period else (user + 1) % USERS
        content = {
            "user": str(user),
            "release": release,
            "source": "personal",
            "items": items(*range(10), of=f"i{owner}-"),
        }
        body = json.dumps(content, separators=(",", ":")).encode()
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    return respond


@pytest.mark.parametrize(
    ("period", "runs"),
    [(3, 3), (10, 1), *(in_soak(period, 30) for period in range(2, 11))],
)
def test_a_server_that_errs_periodically_is_found_whatever_its_period(store: Path, period: int, runs: int) -> None:
    """Each third response was compared: a server with this period was right in two runs of three."""
    url = f"file://{store}"
    release = run_on(url, lambda read: read.catalogue()).live
    assert release is not None
    load = make_plan(HttpOptions(url=URL, store=url, rate="120", duration="10s")).load
    for run in range(runs):
        faulty = answers_of_a_faulty_server(release, period, phase=run)
        result = simulate(load, lambda arrival_s: arrival_s + 0.001, respond=faulty)
        assert result.ok == 1_200
        checked = check_answers(url, result.samples, result.ok)
        assert checked.compared == 500
        assert checked.wrong == pytest.approx(500 / period, rel=0.5)


def test_the_note_on_compared_lists_says_what_the_sample_excludes(store: Path) -> None:
    """With 400 of 1,200 answers compared, "0 wrong" was all that was said."""
    release = run_on(f"file://{store}", lambda read: read.catalogue()).live
    right = answered("1", items(0, 1), "personal", release)
    checked = check_answers(f"file://{store}", [right] * 400, 1_200)
    assert (
        "They are from 400 answers, drawn at random from 1,200: at 95 %, fewer than 0.746 % of all lists are wrong."
        in checked.notes
    )
    wrong = check_answers(f"file://{store}", [right, answered("2", items(0, 1), "personal", release)], 1_200)
    assert "They are from 2 answers, drawn at random from 1,200." in wrong.notes


async def test_wrong_lists_and_fallbacks_are_counted_separately(store: Path) -> None:
    async with opened(f"file://{store}") as read:
        release = (await read.catalogue()).live
        right = items(0, 1)
        popular = items(1, 2, of="p")
        lists = [
            ("1", right, "personal"), ("nobody", popular, "popular"), ("1", popular, "popular"),
            ("2", right, "personal"), ("1", right[:1], "personal"),
        ]  # fmt: skip
        samples = [answered(*fields, release) for fields in lists]
        request = b"GET /v1/recommendations/1 HTTP/1.1\r\n\r\n"
        samples += [
            ResponseSample(request, 200, b"oops", JSON_HEAD, ("1",)),
            ResponseSample(request, 503, b'{"status": 503}'),
        ]
        checked = await check_samples(read, samples)
        assert (checked.compared, checked.wrong, checked.fallback, checked.filtered) == (6, 3, 1, 0)
        assert len(checked.examples) == 3


def test_a_store_out_of_reach_at_the_end_is_no_wrong_list() -> None:
    """All lists were called wrong, or whatever had been measured was lost."""
    checked = check_answers("redis://127.0.0.1:9/0", [answered("1", [], "personal", "r")])
    fixed = report_of(measured(), checked=checked)
    assert fixed.exit_code == 1
    assert not fixed.broken
    assert "were not compared with the store: redis://127.0.0.1:9/0 cannot be reached" in fixed.failures[0]
    assert fixed.row(URL, "p50") is not None


def test_lists_of_a_release_that_the_store_lacks_are_neither_right_nor_wrong(store: Path) -> None:
    """Of 300 lists of another store, one was called wrong."""
    release = run_on(f"file://{store}", lambda read: read.catalogue()).live
    right = answered("1", items(0, 1), "personal", release)
    other = answered("1", items(0, 1), "personal", "20260101T000000Z-0000")
    checked = check_answers(f"file://{store}", [right, other, other])
    assert (checked.compared, checked.wrong) == (1, 0)
    fixed = report_of(measured(), checked=checked)
    assert (fixed.exit_code, fixed.broken) == (1, ())
    assert "not compared with the store: 2 lists of release 20260101T000000Z-0000, which cannot" in fixed.failures[0]
    assert any(note.startswith("1 list compared") for note in fixed.notes)


async def test_named_lists_similar_items_and_fields_are_compared_with_their_rows(tmp_path: Path) -> None:
    """Right answers to such requests were called wrong."""
    rows = {"item:i1": a_list("a", "b"), "user:1": a_list("c", "d"), "user@basket:1": a_list("e", "f")}
    about = {"list": "home"}  # the name of the default list, which is not in keys
    release = await publish_lists(tmp_path / "store", {**rows, "popular@basket:": a_list("p")}, about=about)

    def sample(path: str, *items: dict[str, Any], source: str = "personal") -> ResponseSample:
        body = json.dumps({"release": release, "source": source, "items": items})
        key = urlsplit(path).path.rpartition("/")[2]
        return ResponseSample(f"GET {path} HTTP/1.1\r\n\r\n".encode(), 200, body.encode(), JSON_HEAD, (key,))

    def score(name: str, place: int) -> dict[str, Any]:
        return {"id": name, "score": 1 / (place + 1)}

    def titled(name: str, place: int) -> dict[str, Any]:
        return {**score(name, place), "title": f"Title {name}"}

    right = [
        sample("/v1/similar/i1", titled("a", 0), titled("b", 1)),
        sample("/v1/recommendations/1?list=basket", titled("e", 0), titled("f", 1)),
        sample("/v1/recommendations/1?list=home", titled("c", 0), titled("d", 1)),
        sample("/v1/recommendations/2?list=home", titled("p1", 0), source="popular"),
        sample("/v1/recommendations/1?fields=id", {"id": "c"}, {"id": "d"}),
        sample("/v1/recommendations/1?list=basket&fields=id%2Cscore", score("e", 0), score("f", 1)),
        sample("/v1/recommendations/2?list=basket", titled("p", 0), source="popular"),
    ]
    wrong = [
        sample("/v1/recommendations/1?list=basket", titled("c", 0), titled("d", 1)),
        sample("/v1/recommendations/1", {"id": "c"}, {"id": "d"}),
        sample("/v1/similar/i1?fields=id", {"id": "c"}, {"id": "d"}),
    ]
    async with opened(f"file://{tmp_path}/store") as read:
        checked = await check_samples(read, [*right, *wrong])
    assert (checked.compared, checked.wrong) == (10, 3)
    assert checked.examples[0].startswith("user@basket 1: the answer is not the list ")
    assert checked.examples[2].startswith("item i1: ")


class SilentStore(MemoryStore):
    """A store that does not answer for one key."""

    silent_key = ""

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        results = await super().get_many(release, keys, timeout_s=timeout_s)
        return [
            StoreUnavailable("no answer") if key == self.silent_key else result
            for key, result in zip(keys, results, strict=True)
        ]


@pytest.mark.parametrize("silent_key", ["user:1", "popular:"])
async def test_a_list_that_its_store_does_not_return_in_time_is_not_wrong(silent_key: str) -> None:
    """A store such as a throttled Cosmos DB returns an error for some keys; their lists were called wrong."""
    silent = SilentStore()
    release = await publish_through(silent, {"user:1": a_list("i1-0")})
    silent.silent_key = silent_key
    with pytest.raises(StoreUnavailable, match="no answer"):
        await check_samples(silent, [answered("1", items(0), "personal", release)])


async def test_items_missing_from_all_answers_are_not_wrong(store: Path) -> None:
    """A service with a deny-list leaves an item out of every list, and each such answer was counted as wrong."""
    async with opened(f"file://{store}") as read:
        release = (await read.catalogue()).live

        async def check(*lists: tuple[int, ...]) -> CheckResult:
            return await check_samples(
                read, [answered("1", items(*bounds), "personal", release, 3) for bounds in lists]
            )

        denied = await check(*[(0, 2, 3)] * 4)
        assert (denied.compared, denied.wrong, denied.filtered) == (4, 0, 4)
        assert any("deny-list" in note for note in denied.notes)
        shown = await check((0, 2, 3), (0, 1, 2))
        assert (shown.wrong, shown.filtered) == (1, 0)
        assert (await check((2, 0, 1))).wrong == 1


def test_a_stopped_sweep_says_that_further_sizes_were_not_measured(report_page: ModuleType, tmp_path: Path) -> None:
    """The smallest size was called the best one, and a comparison said "list index out of range"."""
    trial = Trial(offered=10, result=measured())
    plan = make_plan(HttpOptions(url=URL, users=USERS, batch="10,50"))
    stopped = render(HttpRuns(plan, (trial,), (), None, interrupted=True))
    assert stopped.sentence.startswith("Of the sizes before the sweep was stopped, the smallest batch that gives 90 %")
    report_page.save(stopped, tmp_path / "sweep")
    sweep = tmp_path / "sweep.json"
    failed(bench("compare", sweep, sweep), "has no rounds at one rate, such as a sweep of --batch", code=2)


def test_compared_lists_are_drawn_from_all_answers_with_lists_or_without(store: Path, tmp_path: Path) -> None:
    """20 lists were said to be drawn at random from 10 answers."""
    counter = itertools.count()

    def every_second_list(path: str, *_: object) -> tuple[int, bytes]:
        listed = items(0, 1) if next(counter) % 2 else []
        content = {"user": path.rpartition("/")[2], "release": "", "source": "personal", "items": listed}
        return 200, json.dumps(content).encode()

    with http_server(every_second_list) as url:
        options = ("--rate", "40", "--duration", "0.5s", "--warmup", "0s", "--store", f"file://{store}")
        done = bench("http", url, *options, "--json", "--out", tmp_path / "report")
    report = from_json(json.loads(done.stdout))
    assert report.extra["rounds"][0]["ok"] == 10
    assert report.extra["checked"]["answers"] == report.extra["checked"]["drawn"] == 20
