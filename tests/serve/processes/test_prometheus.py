"""The curves of all pods, of a Prometheus: what is read of it, and what is said when it gives nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hotplate.serve.access.keys import create
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.processes import prometheus
from hotplate.serve.processes.prometheus import ALL_PODS, MAX_BYTES, NOT_NAMED, Prometheus
from hotplate.stores.errors import StoreMisused
from tests.support.command import hotplate
from tests.support.prometheus import Curve, PlayedPrometheus, playing
from tests.support.service import UNTIL_S, Answer, a_list, publish_lists, running, until

PASSWORD = "s3cret:/?#@"
QUOTED = "s3cret%3A%2F%3F%23%40"
GOOD: dict[str, Curve] = {
    "rate": lambda _: "12.3456",
    "failed": lambda _: "0",
    "p99": lambda at: "NaN" if at % 60 < 30 else "1.5",
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for as long as a busy machine may take, and not only for as long as operators do."""
    monkeypatch.setattr(prometheus, "DEADLINE_S", UNTIL_S)


@pytest.fixture
async def played() -> AsyncIterator[PlayedPrometheus]:
    async with playing() as found:
        found.curves = GOOD
        yield found


async def test_an_hour_has_a_point_each_step_and_gaps_where_there_is_no_value(played: PlayedPrometheus) -> None:
    played.curves = {**GOOD, "failed": lambda at: None if at % 60 < 30 else "0.5"}
    hour: Any = await Prometheus(played.url).hour()
    assert (hour["says"], hour["seconds"], hour["every_s"]) == (ALL_PODS, 3600, 30)
    ((query),) = played.queries
    assert (int(query["end"]) - int(query["start"]), query["step"], query["timeout"]) == (3570, "30", f"{UNTIL_S:g}s")
    steps = range(int(query["start"]), int(query["end"]) + 1, 30)
    assert len(hour["points"]) == len(steps) == 120
    has_all = {True: {"rate": 12.346, "failed": 0.5, "p99": 1.5}, False: {"rate": 12.346, "failed": None, "p99": None}}
    assert hour["points"] == [has_all[at % 60 >= 30] for at in steps]


async def test_one_fetch_is_for_all_pages_until_it_is_old(
    played: PlayedPrometheus, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Prometheus(played.url)
    first, *others = await asyncio.gather(*(source.hour() for _ in range(20)))
    assert all(each is first for each in others)
    assert len(played.queries) == 1
    monkeypatch.setattr(prometheus, "FRESH_S", 0.0)
    old = Prometheus(played.url)
    assert await old.hour() is not await old.hour()
    assert len(played.queries) == 3


async def test_series_are_selected_as_the_url_says(played: PlayedPrometheus) -> None:
    await Prometheus(f'{played.url}?match=namespace="shop",job!="a%2Bb"').hour()
    (query,) = played.queries
    assert query["query"].count('{route!~"/|/livez|') == query["query"].count(',namespace="shop",job!="a+b"') == 4


async def test_a_password_is_sent_and_never_said(played: PlayedPrometheus, caplog: pytest.LogCaptureFixture) -> None:
    played.password = PASSWORD
    url = played.url.replace("://", f"://operator:{QUOTED}@")
    hour = await Prometheus(url).hour()
    assert hour["says"] == ALL_PODS
    played.password = "another"
    with caplog.at_level(logging.DEBUG):
        hour = await Prometheus(url).hour()
    assert hour["says"] == "Prometheus does not answer (status 401): this pod only."
    assert "status 401" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"status": 400, "body": '{"status":"error","errorType":"bad_data","error":"parse error"}'}, "status 400"),
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, "status 302"),
        ({"body": "<html>sign in</html>"}, "not as to a range query"),
        ({"body": "[" * 100_000}, "not as to a range query"),
        ({"body": '{"status":"success","data":{"resultType":"vector","result":[]}}'}, "not as to a range query"),
        ({"body": '{"status":"error","errorType":"timeout","error":"too slow"}'}, "not as to a range query"),
        (
            {"body": '{"status":"success","data":{"resultType":"matrix","result":[{"metric":{},"values":[[1,"x"]]}]}}'},
            "not as to a range query",
        ),
        ({"body": " " * (MAX_BYTES + 1)}, f"more than {MAX_BYTES} bytes"),
        ({"hangs": True}, "not in 0.2 s"),
    ],
)
async def test_what_is_no_answer_is_said_and_has_no_points(
    played: PlayedPrometheus, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], why: str
) -> None:
    if "hangs" in answer:
        monkeypatch.setattr(prometheus, "DEADLINE_S", 0.2)
    for name, value in answer.items():
        setattr(played, name, value)
    hour = await Prometheus(played.url).hour()
    assert (hour["says"], hour["points"]) == (f"Prometheus does not answer ({why}): this pod only.", None)
    assert len(played.queries) <= 1  # a redirect is not followed; if time is short, nothing may have come


async def test_a_prometheus_that_knows_no_pods_says_so(played: PlayedPrometheus) -> None:
    played.curves = {}
    hour = await Prometheus(played.url).hour()
    assert hour["says"] == "Prometheus has no requests of hotplate in this hour: this pod only."


async def test_a_failure_is_logged_once_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prometheus, "FRESH_S", 0.0)
    async with playing() as played:
        played.curves = GOOD
        source = Prometheus(played.url)
        for status in (200, 500, 500, 200, 200):
            played.status = status
            await source.hour()
    hour = await source.hour()
    assert hour["says"] == "Prometheus does not answer (no connection): this pod only."
    assert [each.getMessage().removeprefix(played.url) for each in caplog.records] == [
        ": Prometheus does not answer (status 500)",
        ": Prometheus answers again",
        ": Prometheus does not answer (no connection)",
    ]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("prometheus:9090", "is not the URL of a server"),
        ("ftp://a:s3cret@prometheus", "is not the URL of a server"),
        ("http://a:s3cret@:9090", "is not the URL of a server"),
        ("http://a:s3cret@prometheus:x", "is not the URL of a server"),
        ("http://a:s3cret@[prometheus", "cannot be understood"),
        ("http://a:s3cret@prometheus?match=shop", "takes matchers"),
        ('http://a:s3cret@prometheus?match=a="b"}) or vector(1)', "takes matchers"),
        ("http://a:s3cret@prometheus?token=s3cret", "takes no parameter 'token'"),
    ],
)
def test_a_url_that_cannot_be_is_refused_without_its_password(url: str, why: str) -> None:
    with pytest.raises((ServiceMisused, StoreMisused), match=why) as refused:
        Prometheus(url)
    assert "s3cret" not in str(refused.value)


def test_a_service_with_a_wrong_url_does_not_start(tmp_path: Path) -> None:
    done = hotplate("serve", "--store", f"file://{tmp_path}/store", "--prometheus", "ftp://a:s3cret@prometheus")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--prometheus ftp://prometheus is not the URL of a server" in " ".join(done.stderr.split())
    assert "s3cret" not in done.stderr


async def test_the_console_has_the_hour_of_all_pods_for_operators_only(
    played: PlayedPrometheus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish_lists(tmp_path / "store", {"user:42": a_list("a")})
    keys = tmp_path / "keys.json"
    operator, reader = create(keys, "operator", ["admin"]).key, create(keys, "web", ["read"]).key
    played.password = PASSWORD
    monkeypatch.setenv("HOTPLATE_PROMETHEUS", played.url.replace("://", f"://operator:{QUOTED}@"))

    def use() -> None:
        with running(tmp_path / "store", "--admin-host", "0.0.0.0", "--keys", str(keys)) as service:
            assert service.admin("/console/hour").status == 401
            assert service.admin("/console/hour", X_API_Key=reader).status == 403
            assert played.queries == []
            hours = list[Answer]()

            def has_all() -> bool:
                hours.append(service.admin("/console/hour", X_API_Key=operator))
                return bool(hours[-1].json["says"] == ALL_PODS)

            until(has_all)  # the service waits for no longer than operators do
            assert len(hours[-1].json["points"]) == 120
            shown = service.admin("/console/service", X_API_Key=operator)
            assert shown.json["settings"]["prometheus"] == played.url
            for said in (hours[-1].body, shown.body, service.log.read_bytes()):
                assert b"s3cret" not in said

    await asyncio.to_thread(use)


async def test_a_console_without_a_prometheus_says_how_to_name_one(tmp_path: Path) -> None:
    await publish_lists(tmp_path / "store", {"user:42": a_list("a")})

    def use() -> None:
        with running(tmp_path / "store") as service:
            assert service.admin("/console/hour").json == NOT_NAMED
            assert service.admin("/console/hour?x=1").status == 400

    await asyncio.to_thread(use)
