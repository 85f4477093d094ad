"""`--dry-run` and `--max-ru`, and what a publish reports that it spent, as people use them."""

import re
import secrets
from pathlib import Path

import pytest

from hotplate.cli.costs import RequestUnitMeter, billed_hours, format_duration
from hotplate.stores import publication
from hotplate.stores.store import Plan, Row
from tests.support.command import failed, hotplate, json_of, succeeded
from tests.support.cosmos_account import Account
from tests.support.cosmos_simulation import SimulatedAccount, batches, simulated
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few lists: 60 users, 20 items each."""
    path = tmp_path_factory.mktemp("lists") / "lists.csv"
    rows = [f"u{user},p{(user * 7 + item) % 90},{1 - item / 100}" for user in range(60) for item in range(20)]
    path.write_text("\n".join(["user,item,score", *rows]))
    return path


@pytest.fixture
def cosmos(cosmos_http: Account) -> str:
    return cosmos_http.url(secrets.token_hex(4), ru="2000")


def writes(account: Account) -> float:
    """Return how many requests have changed anything, by the emulator's own count."""
    changing = ("create", "upsert", "replace", "delete", "patch", "batch")
    requests = account.metric("hotplate_cosmos_emulator_requests_total")
    return sum(number for (operation, _), number in requests.items() if operation.startswith(changing))


def spent(*arguments: str | Path) -> dict[str, float]:
    found: dict[str, float] = json_of(*arguments)["spent"]
    return found


def test_dry_run_writes_nothing_and_its_estimate_matches_the_publish(
    model: Path, cosmos_http: Account, cosmos: str
) -> None:
    before = writes(cosmos_http)
    estimate = json_of("publish", model, "--store", cosmos, "--max-ru", "1000", "--dry-run")
    assert writes(cosmos_http) == before
    assert estimate["dry_run"] is True
    assert "unless it is there" in estimate["makes"][0]
    assert estimate["usd"] == pytest.approx(estimate["hours_begun"] * (2000 + 400) / 100 * 0.008)
    assert estimate["usd_month"] == pytest.approx((2000 + 400 + 400) / 100 * 0.008 * 730)
    done = spent("publish", model, "--store", cosmos, "--max-ru", "1000")
    assert done["request_units"] == pytest.approx(estimate["request_units"], rel=0.01)
    assert done["throttled"] == 0
    assert estimate["seconds"] <= done["seconds"] < estimate["seconds"] + 20
    assert done["usd"] == estimate["usd"] or done["hours_begun"] != estimate["hours_begun"]


def test_text_output_shows_estimated_containers_and_cost_then_actual_usage(lists: Path, cosmos: str) -> None:
    printed = succeeded("import", lists, "--store", cosmos, "--max-ru", "8000", "--dry-run")
    for part in (
        "nothing is written", "the container hotplate, of the catalogue: 400 RU/s, manual", "2 physical partitions for",
        "which is scaled to 2,000 RU/s", "RU a row", "USD for the publish: 8,000 + 400 RU/s for", "USD/month",
        "excluding storage", "a list price",
    ):  # fmt: skip
        assert part in printed
    done = hotplate("import", lists, "--store", cosmos, "--max-ru", "8000")
    assert "is live" in done.stdout
    assert "read back once" in done.stdout
    assert "refused (429)" in done.stdout
    assert "begun" in done.stdout


def test_a_serverless_account_pays_for_what_is_used(lists: Path, cosmos_http: Account) -> None:
    url = cosmos_http.url(secrets.token_hex(4), ru="serverless")
    estimate = json_of("import", lists, "--store", url, "--dry-run")
    assert estimate["usd"] == pytest.approx(estimate["request_units"] / 1e6 * 0.25, abs=1e-6)
    assert estimate["afterwards"] == []
    text = hotplate("import", lists, "--store", url, "--dry-run").stdout
    assert "0 without reads" in text
    assert "is not guaranteed" in text


def test_files_and_redis_say_rows_bytes_and_whether_they_fit(
    lists: Path, model: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    for url in (f"file://{tmp_path}/store", redis_server.url("redis", secrets.token_hex(4))):
        estimate = json_of("import", lists, "--store", url, "--dry-run")
        assert estimate["rows"] in (62, 63)  # a manifest, and a dictionary where there is compression
        assert estimate["fits"] is True
        assert "seconds" not in estimate
        assert "which fit" in hotplate("publish", model, "--store", url, "--dry-run").stdout
        listed = hotplate("releases", "list", "--store", url)
        assert (listed.returncode, "Nothing was ever published to " in listed.stderr) == (1, True)
    assert not (tmp_path / "store").exists()


def test_what_a_dry_run_and_a_limit_cannot_do_is_one_sentence(lists: Path, model: Path, tmp_path: Path) -> None:
    file = f"file://{tmp_path}/store"
    for command in (
        ("publish", model, "--store", file, "--max-ru", "1000"),
        ("import", lists, "--store", file, "--max-ru", "1000"),
        ("releases", "copy", "--from", "redis://localhost:1/0", "--to", file, "--max-ru", "1000"),
        ("publish", model, "--store", "redis://user:secret@localhost:1/0", "--max-ru", "1000", "--dry-run"),
    ):
        done = hotplate(*command)
        failed(done, "--max-ru is for Cosmos DB", code=2)
        assert "secret" not in done.stderr
    failed(hotplate("publish", model, "--store", file, HOTPLATE_MAX_RU="9"), "--max-ru is for Cosmos DB", code=2)
    resumed = hotplate("publish", model, "--store", file, "--dry-run", "--resume", "20261120T064200Z-7f3a")
    failed(resumed, "leave out --resume", code=2)
    away = succeeded("import", lists, "--store", "cosmos+http://localhost:1/d", "--dry-run")
    assert "it could not be read" in away


def test_a_limit_wins_over_the_one_of_the_url_and_slows_a_publish_down(lists: Path, cosmos: str) -> None:
    estimate = json_of("import", lists, "--store", f"{cosmos}&max_ru=5", "--max-ru", "150", "--dry-run")
    assert estimate["rate_ru"] == 150
    done = spent("import", lists, "--store", f"{cosmos}&max_ru=5", "--max-ru", "150")
    assert done["seconds"] >= estimate["seconds"]
    assert done["request_units"] == pytest.approx(estimate["request_units"], rel=0.01)


@simulated
async def test_what_is_spent_while_it_runs_is_what_the_service_charges(account: SimulatedAccount) -> None:
    spending = RequestUnitMeter()
    account.observer = spending
    store = account.store(ru=400)
    spending.watch(store)
    await publication.publish(store, batches([Row("popular:", b"p")]), plan=Plan(1, 1), about={})
    assert spending.request_units == pytest.approx(account.spent_ru())
    assert re.fullmatch(r"[\d,]+ RU/s, 0\.(064|128) USD", spending.progress())


def test_hours_are_those_of_the_wall_clock_and_each_that_was_begun_counts() -> None:
    assert billed_hours(7200.0, 1.0) == 1
    assert billed_hours(7199.0, 2.0) == 2
    assert billed_hours(7199.0, 3602.0) == 3
    assert [format_duration(seconds) for seconds in (9.96, 240, 7200)] == ["10.0 s", "4.0 minutes", "2.0 hours"]
