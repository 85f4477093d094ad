"""`--dry-run` and `--max-ru`, and what a publish reports that it spent, as people use them."""

import re
import secrets
from pathlib import Path

import pytest

from hotplate.cli.costs import RequestUnitMeter
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


def test_dry_run_writes_nothing_and_a_publish_reports_what_it_spent(
    model: Path, lists: Path, cosmos_http: Account, cosmos: str
) -> None:
    before = writes(cosmos_http)
    rehearsed = json_of("publish", model, "--store", cosmos, "--max-ru", "1000", "--dry-run")
    assert writes(cosmos_http) == before
    assert rehearsed["dry_run"] is True
    done = spent("publish", model, "--store", cosmos, "--max-ru", "1000")
    assert done["request_units"] > 6 * rehearsed["rows"]  # written for 5, read back for 1
    assert done["throttled"] == 0
    text = succeeded("import", lists, "--store", cosmos)
    assert "is live" in text
    assert "read back once; 0 refused (429)" in text


def test_dry_run_says_rows_and_bytes_for_files_and_redis(
    lists: Path, model: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    for url in (f"file://{tmp_path}/store", redis_server.url("redis", secrets.token_hex(4))):
        estimate = json_of("import", lists, "--store", url, "--dry-run")
        assert estimate["rows"] in (62, 63)  # a manifest, and a dictionary where there is compression
        assert "nothing is written" in hotplate("publish", model, "--store", url, "--dry-run").stdout
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


def test_a_limit_wins_over_the_one_of_the_url_and_slows_a_publish_down(lists: Path, cosmos: str) -> None:
    done = spent("import", lists, "--store", f"{cosmos}&max_ru=5", "--max-ru", "150")
    assert 60 * 6 / 150 <= done["seconds"] < 60 * 6 / 5


@simulated
async def test_what_is_spent_while_it_runs_is_what_the_service_charges(account: SimulatedAccount) -> None:
    spending = RequestUnitMeter()
    account.observer = spending
    store = account.store(ru=400)
    await publication.publish(store, batches([Row("popular:", b"p")]), plan=Plan(1, 1), about={})
    assert spending.request_units == pytest.approx(account.spent_ru())
    assert re.fullmatch(r"[\d,]+ RU/s", spending.progress())
