"""What the pages of the docs assume of their reader's machine: files, stores, ports, and services that run."""

import gzip
import random
import re
import secrets
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson
import polars as pl

from hotplate.bench.process import SERVER_PORTS, claim_port, free_port
from hotplate.stores.cosmos.url import EMULATOR_KEY
from hotplate.stores.event_log import LogSegment, line_of
from tests.support import patience
from tests.support.command import succeeded
from tests.support.paths import ROOT
from tests.support.redis_server import certify

# Ids of the pages, and as shops have them.
USERS = ["42", "43", "u17", "u3", "müsli 2/XL", "A-00003", *(f"u{number}" for number in range(100, 160))]
ITEMS = ["42", "43", "7", "8", "9", "84997A", "sku 20", "müsli-2", "100% wool", *(f"p{number}" for number in range(40))]

# Reads the list of releases, and prints the last one of a state.
RELEASE = """
import json, sys

releases = json.load(sys.stdin)["releases"]
print([release["id"] for release in releases if release["state"] == sys.argv[1]][-1])
"""

PREAMBLE = r"""
set -e -o pipefail
trap 'code=$?; [ $code = 0 ] || echo "$block failed" >&2; kill $(jobs -p) 2>/dev/null || true; wait; exit $code' EXIT
serving=

accepted=3  # the exit codes of successful commands: 3 is a verdict on the data, which are the test's

# A service runs, as in another terminal, until the page starts the next one.
hotplate() {
    case $1 in
        serve | cosmos-emulator) in_another_terminal "$@" ;;
        *) command hotplate "$@" || [[ " $accepted " == *" $? "* ]] ;;
    esac
}
in_another_terminal() {
    stop
    command hotplate "$@" 2>>service.log &
    serving=$!
    local probe=http://127.0.0.1:$HOTPLATE_HEALTH_PORT/readyz
    if [ "$1" = cosmos-emulator ]; then probe=http://localhost:$EMULATOR_PORT/__emulation/metrics; fi
    until command curl --silent --fail --output /dev/null "$probe"; do
        kill -0 "$serving" 2>/dev/null || { cat service.log >&2; return 1; }
        sleep 0.05
    done
}
stop() {
    if [ -n "$serving" ]; then
        kill "$serving"
        wait "$serving" || true
        serving=
    fi
}
curl() {
    command curl --silent --show-error --fail-with-body --retry 10 --retry-delay 1 --retry-all-errors "$@"
}
release() {  # release STATE
    command hotplate releases list --json | python release.py "$1"
}
"""

# Fails if the service refuses what a script sends.
NODE_PREAMBLE = """
const key = "KEY";
const request = globalThis.fetch;
globalThis.fetch = async (...call) => {
  const response = await request(...call);
  if (!response.ok) throw new Error(await response.text());
  return response;
};
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A folder, which is also the root of the system's paths, stores and ports."""

    folder: Path
    redis: str
    cosmos: str
    port: int
    emulator_port: int

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FOLDER": str(self.folder),
            "SERVICE": f"http://127.0.0.1:{self.port}",
            "EMULATOR_PORT": str(self.emulator_port),
            "KEY": "KEY",
            "BROWSER": "true",
            "HOTPLATE_STORE": f"file://{self.folder}/var/lib/hotplate",
            "HOTPLATE_COSMOS_KEY": EMULATOR_KEY,
            "HOTPLATE_PORT": str(self.port),
            "HOTPLATE_ADMIN_PORT": str(self.port + 1000),
            "HOTPLATE_HEALTH_PORT": str(self.port + 2000),
            "HOTPLATE_DRAIN_DELAY": "0",
            "HOTPLATE_BUDGET": str(patience.LIMIT_S),
        }

    def around(self, text: str) -> str:
        """Return a block with these addresses and paths, and with the time limits of a busy machine."""
        patient = f"timeout_s={patience.LIMIT_S}"
        for pattern, value in {
            r"/((?:var/(?:lib|log)|etc/(?:hotplate|tls)|backup|run/secrets)/)": rf"{self.folder}/\1",
            r"redis://cache(?::6379)?/0": self.redis,
            r"cosmos://(?:ACCOUNT|\$ACCOUNT)/(?:DATABASE)?": self.cosmos,
            r"\b(?:pod|127\.0\.0\.1):8080\b": f"127.0.0.1:{self.port}",
            r"--port 8080 --admin-port 8090 --health-port 8091": "",
            r"\b(port |localhost:)8081\b": rf"\g<1>{self.emulator_port}",
            r"(cosmos-emulator) (--charges)": rf"\1 --port {self.emulator_port} \2",
            r"https://recs\.example": f"http://127.0.0.1:{self.port}",
            r"http://pushgateway:9091": f"http://127.0.0.1:{self.port}",
            r"abfs://events@shop\.dfs\.core\.windows\.net/hotplate": f"file://{self.folder}/backup/events",
            r"\b2026\d{4}T\d{6}Z-\*": f"{self.folder}/backup/events/*",
            r"(?<= )(?:2026\d{4}T\d{6}Z-[0-9a-f]{4}|ID)\b": "$ID",
            r"\bURL\b": f"file://{self.folder}/var/lib/hotplate",
            r"--backup FOLDER": f"--backup {self.folder}/var/lib/hotplate/store",
            r"--model FOLDER": "--model model",
            r"--events FOLDER": f"--events {self.folder}/backup/events",
            r"--(titles|similar|popular) FILE": r"--\1 \1.csv",
            r"(hotplate serve .*) &$": r"\1",
            r'(open(?:_sync)?\("[^)]*)\)': rf"\1, {patient})",
            r"timeout_s=(?:0\.25|5)\b": patient,
        }.items():
            text = re.sub(pattern, value, text, flags=re.MULTILINE)
        return text


def reader_port() -> int:
    """Return a port with free admin and health listeners one and two thousand above it."""
    while True:
        port = free_port()
        if port + 2000 < SERVER_PORTS[1] and claim_port(port + 1000) and claim_port(port + 2000):
            return port


def write_files(folder: Path) -> None:
    """Write the files that the pages name, and a store with two releases."""
    for name in ("var/lib", "var/log", "etc/hotplate", "etc/tls", "backup/events", "run/secrets", "DATA"):
        (folder / name).mkdir(parents=True)
    _write_clicks(folder)
    _write_lists(folder)
    _write_items(folder)
    (folder / "users.txt").write_text("\n".join(USERS))
    (folder / "release.py").write_text(RELEASE)
    shutil.copy(ROOT / "docs/examples/gates.toml", folder)
    for name in ("cosmos-key", "cosmos-read-key", "run/secrets/cosmos-key"):
        (folder / name).write_text(EMULATOR_KEY)
    certify(folder)
    shutil.move(folder / "server.pem", folder / "etc/tls/tls.crt")
    shutil.move(folder / "server.key", folder / "etc/tls/tls.key")
    _publish(folder)


def _write_clicks(folder: Path) -> None:
    drawn = random.Random(0)
    rows = []
    for number in range(900):
        user = drawn.randrange(len(USERS))
        item = drawn.randrange(user % 3, len(ITEMS), 3)
        event = drawn.choice(("view", "view", "cart", "buy"))
        time = f"2026-11-{1 + number // 60:02}T08:{number % 60:02}:00"
        rows.append((USERS[user], ITEMS[item], event, time))
    clicks = pl.DataFrame(rows, ["user_id", "item_id", "event", "timestamp"], orient="row")
    for name in ("clicks.csv", "log.csv", "train.csv", "DATA/clicks.csv"):
        clicks.write_csv(folder / name)
    half_a_month_later = pl.col("timestamp").str.to_datetime().dt.offset_by("15d").dt.to_string("iso:strict")
    clicks.with_columns(half_a_month_later).write_csv(folder / "test.csv")
    (folder / "clicks.csv.gz").write_bytes(gzip.compress((folder / "clicks.csv").read_bytes()))
    clicks.write_parquet(folder / "clicks.parquet")
    segment = LogSegment(folder / "backup/events")
    for name, product, _, clicked_at in rows[:100]:
        second = datetime.fromisoformat(f"{clicked_at}Z").timestamp()
        for kind in ("impression", "click", "buy"):
            click = {
                "id": secrets.token_hex(8),
                "type": kind,
                "user": name,
                "items": [product],
                "time": second,
                "role": "live",
                "value": 5,
            }
            segment.append([line_of(orjson.dumps(click))])
    segment.close()
    invoices = clicks.drop("event").with_columns(
        invoice_no="timestamp", stock_code=pl.lit("22730"), quantity=1, unit_price=2.5
    )
    invoices.write_parquet(folder / "online_retail.parquet")


def _write_lists(folder: Path) -> None:
    rows = []
    for place, user in enumerate(USERS):
        for rank in range(12):
            item = ITEMS[(place + rank) % len(ITEMS)]
            rows.append((user, item, 1 - rank / 20))
    lists = pl.DataFrame(rows, ["user", "item", "score"], orient="row")
    for name in ("lists", "home", "email"):
        lists.write_parquet(folder / f"{name}.parquet")
    for name in ("lists", "LISTS", "A", "B"):
        (folder / name).mkdir()
        lists.write_csv(folder / name / "lists.csv")


def _write_items(folder: Path) -> None:
    kinds = ("shoes", "boots", "hats", "caps, flat", "mugs", "rugs", "jars", "clocks")
    categories = [kinds[place % len(kinds)] for place in range(len(ITEMS))]
    items = pl.DataFrame({"item": ITEMS, "category": categories}).with_columns(
        price=19.5, stock=3, image=pl.lit("/p.jpg")
    )
    items.write_parquet(folder / "items.parquet")
    items.select("item", title="category").write_csv(folder / "titles.csv")
    items.select("item", score="price").write_csv(folder / "popular.csv")
    items.select("item", other=pl.lit("42"), score="price").write_csv(folder / "similar.csv")
    for name in ("stock.csv", "catalogue.csv"):
        items.write_csv(folder / name)
    (folder / "not-in-baskets.txt").write_text("\n".join(ITEMS[:2]))


def _publish(folder: Path) -> None:
    """Train, and publish twice into two stores, as one page has its store in a folder of the other's place."""
    model = folder / "model"
    chosen = ("--event-weights", "view=1,cart=3,buy=5", "--params", "factors=8,iterations=2")
    succeeded("train", folder / "train.csv", *chosen, "--out", model)
    for name in ("MODEL", "model-a", "model-b", "basket-model"):
        shutil.copytree(model, folder / name)
    store = folder / "var/lib/hotplate"
    for _ in range(2):
        succeeded("publish", model, "--store", f"file://{store}")
    shutil.copytree(store, folder / "copy")
    shutil.move(folder / "copy", store / "store")
