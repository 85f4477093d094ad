"""Experiments: sticky arms under nightly publishes, and a report that is right about chance."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hotplate.base.intervals import Sample, difference_interval
from hotplate.serve.events.experiments import (
    MAX_SKEWNESS,
    ArmEvents,
    ArmReport,
    skewness,
    users_needed,
)
from hotplate.serve.lists.reader import TieredReader
from hotplate.stores import lifecycle as life
from hotplate.stores.catalogue import Arm, Experiment, ReleaseId, UserShare
from hotplate.stores.encoding import OFFSET_BYTES, USER
from hotplate.stores.event_log import LogSegment, line_of
from hotplate.stores.publication import Activation
from hotplate.stores.store import Row
from hotplate.stores.users import erase_users
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.service import a_list
from tests.support.stores import OpenStore, allow_erasure, publish, ref_of
from tests.support.waiting import until_true

NAMES = [str(number) for number in range(40)]
START = 1_000_000.0
END = 1_000_000.0 + 14 * 86_400


def rows(word: str) -> list[Row]:
    """Return lists of a release for all users, which name it."""
    return [Row("popular:", a_list(f"{word}-popular")), *(Row(f"user:{name}", a_list(word)) for name in sorted(NAMES))]


async def answers(reader: TieredReader) -> dict[str, tuple[ReleaseId, str]]:
    """Return the release and the first item of each user's list, read alone and in a batch."""
    await reader.tiers[0].follower.refresh()
    alone = [await reader.read(USER, name) for name in NAMES]
    for batch in (alone, await reader.personal_many(NAMES)):
        assert [answer.release.id for answer in batch] == [answer.release.id for answer in alone]
    items = [json.loads(answer.body[OFFSET_BYTES:].split(b"\n")[0])["id"] for answer in alone]
    return {name: (answer.release.id, item) for name, answer, item in zip(NAMES, alone, items, strict=True)}


@pytest.mark.parametrize("open_store", ["file", "redis"], indirect=True)
async def test_users_keep_their_arm_while_both_arms_are_published_every_night(open_store: OpenStore) -> None:
    store = open_store()
    await publish(store, rows("A"))
    first = await publish(store, rows("B"), live=False)
    await life.start_canary(store, first, 50, 14)
    experiment = (await store.catalogue()).experiment
    assert experiment is not None
    arms = {name: experiment.arm_of(name) for name in NAMES}
    assert 10 <= sum(arm == "B" for arm in arms.values()) <= 30
    reader = TieredReader({"tier": open_store()}, budget_s=60)
    assert {name: item for name, (_, item) in (await answers(reader)).items()} == arms
    for night in range(2):
        for arm in ("A", "B"):
            await publish(store, rows(f"{arm}{night}"), activation=Activation(arm=arm))
        assert {name: item for name, (_, item) in (await answers(reader)).items()} == {
            name: f"{arm}{night}" for name, arm in arms.items()
        }
        await life.prune(store, grace_s=0)
    catalogue = await store.catalogue()
    assert (len(catalogue.committed), catalogue.experiment and catalogue.experiment.salt) == (4, first)
    await erase_users(store, NAMES[:2])
    await life.rollback(store)
    now = await answers(reader)
    for name in NAMES[:2]:
        assert now[name][1] == ("A0-popular" if arms[name] == "A" else "B1-popular")
    assert {name: item for name, (_, item) in now.items() if name not in NAMES[:2]} == {
        name: "A0" if arm == "A" else "B1" for name, arm in arms.items() if name not in NAMES[:2]
    }


@pytest.mark.parametrize(
    ("open_store", "harm"),
    [("redis", "erased"), ("file", "erased"), ("file", "cut"), ("file", "removed while mapped")],
    indirect=["open_store"],
)
async def test_arm_a_answers_while_arm_b_is_unservable(open_store: OpenStore, tmp_path: Path, harm: str) -> None:
    store = open_store()
    await publish(store, rows("A"))
    await life.start_canary(store, await publish(store, rows("B"), live=False), 50, 14)
    lost = await ref_of(store, await publish(store, rows("lost"), activation=Activation(arm="B")))
    file = tmp_path / "store" / "releases" / f"{lost.incarnation}.mdb"
    if harm == "erased":
        await store.erase(lost, allow_erasure)
    await store.close()
    if harm == "cut":
        os.truncate(file, 5000)
    async with TieredReader({"tier": open_store()}, budget_s=60, warm=True) as reader:
        await reader.wait_until_ready(20)
        file.unlink(missing_ok=True)
        second = await publish(open_store(), rows("A2"), activation=Activation(arm="A"))
        await until_true(lambda: reader.live_id() == second)
        assert {*(await answers(reader)).values()} == {(second, "A2")}
        assert lost.id in reader.tiers[0].follower.findings[0].sentence


def test_the_report_assigns_users_as_the_service_does() -> None:
    experiment = Experiment("salt", 30, START, END)
    canary = UserShare.of(30, "salt")
    for name in map(str, range(1000)):
        assert (experiment.arm_of(name) == "B") == canary.includes(name)


def sample(values: np.ndarray) -> Sample:
    """Return `Sample.of(values)`, by NumPy."""
    third = ((values - values.mean()) ** 3).mean()
    return Sample(len(values), float(values.mean()), float(values.var(ddof=1)), float(third))


@cache
def are_in_b(salt: int, percent: float) -> np.ndarray:
    """Return, for 1,500 users, whether each is in arm B."""
    experiment = Experiment(f"salt {salt}", percent, START, END)
    return np.array([experiment.arm_of(str(number)) == "B" for number in range(1500)])


@pytest.mark.parametrize(("kind", "percent"), [("clicks", 50), ("value", 50), ("value", 10)])
def test_experiments_without_an_effect_have_few_winners(kind: str, percent: float) -> None:
    rng = np.random.default_rng(7)
    winners = 0
    for number in range(500):
        in_b = are_in_b(number % 40, percent)
        values = rng.negative_binomial(0.3, 0.1, len(in_b)).astype(float)
        if kind == "value":  # 8 % buy, and the amounts have a heavy tail
            values = rng.binomial(1, 0.08, len(in_b)) * rng.lognormal(3.0, 1.2, len(in_b))
        a = sample(values[~in_b])
        b = sample(values[in_b])
        low, high = difference_interval(a, b)
        winners += abs(skewness(a, b)) <= MAX_SKEWNESS and (low > 0 or high < 0)
    assert (15 if percent == 50 else 0) <= winners <= 35


def test_experiments_with_enough_users_have_80_percent_power() -> None:
    rng = np.random.default_rng(7)
    share = 0.3
    change = 0.1
    drawn = sample(rng.lognormal(1.0, 1.0, 100_000))
    needed = users_needed(drawn, drawn._replace(variance=drawn.variance * (1 + change) ** 2), share, change)
    assert needed is not None
    assert needed[1] / sum(needed) == pytest.approx(share, abs=0.001)
    winners = 0
    for _ in range(400):
        a, b = (
            sample(factor * rng.lognormal(1.0, 1.0, users))
            for users, factor in zip(needed, (1, 1 + change), strict=True)
        )
        winners += difference_interval(a, b)[0] > 0
    assert 0.74 <= winners / 400 <= 0.86


def report(experiment: Experiment, now: float, bought: dict[Arm, float], only: str = "AB", goal: str = "") -> ArmReport:
    """Return the report on 400 users who see a list; half of the users of each arm buy."""
    events = ArmEvents(experiment, goal or "buy:value", now)
    for number in range(400):
        user = f"u{number}"
        arm = experiment.arm_of(user)
        if arm in only:
            events.add("impression", user, START, None)
        if number % 2:
            events.add("buy", user, START + 1, bought[arm] + number / 100)
            events.add("buy", user, END, 1e9)
            events.add("buy", f"unseen {user}", START + 1, 1e9)
    return events.report(0.05)


RUNNING = Experiment("salt", 50, START, END)
EQUAL: dict[Arm, float] = {"A": 5.0, "B": 5.0}
BETTER: dict[Arm, float] = {"A": 5.0, "B": 9.0}
WORSE: dict[Arm, float] = {"A": 9.0, "B": 5.0}


@pytest.mark.parametrize(
    ("experiment", "now", "bought", "only", "verdict"),
    [
        (RUNNING, END - 1, BETTER, "AB", "no verdict: before"),
        (RUNNING, END, BETTER, "AB", "B has more"),
        (RUNNING, END, WORSE, "AB", "A has more"),
        (RUNNING, END, EQUAL, "AB", "no difference"),
        (RUNNING, END, BETTER, "A", "no verdict: one arm loses"),
        (Experiment("salt", 50, START, END, ended_at=END - 1), END, BETTER, "AB", "no verdict: ended"),
        (Experiment("salt", 50, START, END, ended_at=END + 1), END + 1, BETTER, "AB", "B has more"),
    ],
)
def test_verdict_needs_the_horizon_and_configured_shares(
    experiment: Experiment, now: float, bought: dict[Arm, float], only: str, verdict: str
) -> None:
    arm_report = report(experiment, now, bought, only)
    assert arm_report.verdict.startswith(verdict)
    assert (arm_report.interval is None) == verdict.startswith("no verdict")
    assert sum(arm_report.users) == sum(RUNNING.arm_of(f"u{n}") in only for n in range(400))


def test_verdict_needs_30_users_of_each_arm() -> None:
    events = ArmEvents(RUNNING, "buy", END)
    for number in range(40):
        events.add("impression", f"u{number}", START, None)
        events.add("buy", "u1", START, None)
    assert events.report(0.05).verdict == "no verdict: fewer than 30 users of an arm"


def test_verdict_needs_enough_users_for_rare_values() -> None:
    events = ArmEvents(Experiment("salt", 10, START, END), "buy", END)
    for number in range(600):
        events.add("impression", f"u{number}", START, None)
        events.add("buy", f"u{number - number % 60}", START, None)
    assert events.report(0.05).verdict == "no verdict: too few users for such values"


def test_goal_is_an_event_type_or_its_value() -> None:
    assert sum(report(RUNNING, END, BETTER, goal="impression").users) == 400
    counted = report(RUNNING, END, BETTER, goal="buy")
    assert counted.means == pytest.approx((0.5, 0.5), abs=0.1)
    assert counted.verdict == "no difference"
    for goal in ("sale", "sale:value", "impression:value"):
        verdict = report(RUNNING, END, BETTER, goal=goal).verdict
        assert verdict == f"no verdict: no {goal} of users with an impression"


def write_purchases(log: Path, *, at: float, users: int) -> None:
    """Write an impression and a purchase of each user into a segment."""
    segment = LogSegment(log)
    for number in range(users):
        event = {"time": at, "user": str(number), "items": ["a"], "role": "live"}
        segment.append([line_of(json.dumps(event | {"type": "impression", "id": f"i{number}"}).encode())])
        segment.append([line_of(json.dumps(event | {"type": "buy", "id": f"b{number}", "value": number % 7}).encode())])
    segment.close()


def test_the_command_compares_the_arms_of_the_store(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    log = tmp_path / "log"
    lists = tmp_path / "lists.csv"
    lists.write_text("user,item,score\n1,a,2\n1,b,1\n")
    log.mkdir()
    command = ("events", "report", log, "--store", store, "--goal", "buy:value", "--min-effect", "10")
    publish = ("import", lists, "--store", store)

    succeeded(*publish)
    failed(hotplate(*command), "No experiment was started in this store")
    failed(hotplate(*publish, "--arm", "B"), "No experiment is running", code=3)

    other = json_of("import", lists, "--no-activate", "--store", store)["release"]["release"]
    start = ("releases", "canary", other, "--store", store)
    failed(hotplate(*start, "--days", "inf"), "--days", code=2)
    assert "50 % of the users" in succeeded(*start, "--percent", "50", "--days", "14")
    assert "is live" in succeeded(*publish)
    assert "is arm B" in succeeded(*publish, "--arm", "B")
    failed(hotplate(*start), "is arm B, of 50 %; promote or abort it first")
    refused = hotplate(*publish, "--arm", "B", "--gate", "shortest_list=3")
    failed(refused, "and is not arm B, and ", "hotplate releases activate --force ", " --arm B", code=3)
    listed = succeeded("releases", "list", "--store", store)
    assert "live, arm A" in listed
    assert "ready, arm B of 50 % until 20" in listed

    started = json_of("releases", "list", "--store", store)["experiment"]["started_at"]
    write_purchases(log, at=started + 1, users=200)
    assert "no verdict: before the horizon; horizon 20" in succeeded(*command)
    arms = json_of(*command)["arms"]
    assert (arms["interval"], arms["experiment"]["salt"], sum(arms["users"])) == (None, other, 200)

    assert succeeded("releases", "activate", other, "--arm", "B", "--store", store).startswith(f"{other} is arm B")
    succeeded("releases", "promote", other, "--store", store)
    assert json_of(*command)["arms"]["verdict"] == "no verdict: ended before the horizon"
