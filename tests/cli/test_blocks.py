"""Every code block of README and docs/ is run as it stands, read by what reads its format, or listed with a reason.

The blocks of a page run in one shell, in the order of the page, in a folder that has the files which they name. Only
addresses, paths of the system and placeholders are replaced. A block is named by its page and its first line.
"""

import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import orjson
import pytest
import yaml

from hotplate.bench.process import free_port
from tests.support.command import succeeded
from tests.support.cosmos_account import Account
from tests.support.examples import PAGES, Block, blocks
from tests.support.kubernetes import tool
from tests.support.machine import NODE_PREAMBLE, PREAMBLE, Machine, reader_port, write_files
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.redis_server import RedisServer
from tests.support.shell_command import programs

AZURE = "needs a subscription of Azure; tests/k8s/test_targets.py checks the files that it names"
CLUSTER = "needs a cluster; tests/k8s/test_manifests.py checks what it applies"
MACHINE = "changes the machine as root; tests/k8s/test_one_machine.py runs the installers below another root"
PACKAGES = "installs packages; .ci/try-wheel and the Makefile do"
OUTPUT = "an excerpt of what the command prints; compared by "
IDLE = "gives no verdict on a machine that is not idle; shortened in tests/bench/"
RUNBOOK = "tests/k8s/test_runbook.py runs each command on a store of its own"
OPERATIONS = "tests/cli/test_operations.py runs the page's transcript under load"
SHOP = "tests/serve/test_shop.py runs it in each state that fails"

Value = TypeVar("Value")

# Why blocks are not run here, by page and by how they begin. A reason names the test that runs or checks it, if any.
LISTED: dict[str, dict[str, str]] = {
    "README.md": {
        "make demo  ": "tests/cli/test_main.py runs the demo and the requests that it prints",
        "make demo     sample": "a table of targets; tests/cli/test_docs.py looks for them in the Makefile",
        "Fastest and cheapest": OUTPUT + "tests/tools/test_docs_figures.py",
        "On an emulator": OUTPUT + "tests/tools/test_docs_figures.py",
        "Cheapest for": OUTPUT + "tests/cli/test_plan.py",
    },
    "docs/azure.md": {"az ": AZURE},
    "docs/cosmos.md": {
        "GROUP=": AZURE,
        "az ": AZURE,
        "hotplate publish MODEL --store 'cosmos://ACCOUNT/DATABASE?res": (
            "needs Entra ID and Azure's management; tests/stores/cosmos/test_entra.py emulates them"
        ),
    },
    "docs/events.md": {"sum(rate(": "PromQL; tests/k8s/test_monitoring.py gives it to promtool"},
    "docs/extend.md": {
        '{"id"': "values as they are stored; tests/stores/test_encoding.py decodes them",
        "from hotplate.testing": "tests/stores/test_third_party.py runs the distribution that it is taken from",
    },
    "docs/integration.md": {
        "npm ": "tests/k8s/test_typescript.py runs it",
        "import createClient": "tests/k8s/test_typescript.py runs it",
        "from contextlib": SHOP,
        "const service": SHOP,
        "import { createServer": SHOP,
        "<ul": SHOP,
        "from flask": "tests/serve/test_embedded.py runs it",
    },
    "docs/kubernetes.md": {
        "kubectl ": CLUSTER,
        "hotplate keys create shop": CLUSTER,
        "# shop/": "tests/k8s/test_manifests.py builds it",
        "make image": "needs a container engine; make image-check does the same",
    },
    "docs/measuring.md": {
        "hotplate bench http": IDLE + "test_http.py",
        "hotplate bench ru": "minutes; tests/bench/ru shortens it, and the README's first command runs in the soak",
        "hotplate bench stores": "minutes; tests/bench/test_stores.py shortens it, and the README's runs in the soak",
        "hotplate bench reference": "needs an account of Cosmos DB; tests/bench/test_reference.py emulates it",
        "make bench": "runs all benchmarks, for many minutes",
        "make figures": "writes these pages; tests/tools/test_docs_figures.py writes copies",
    },
    "docs/operations.md": dict.fromkeys(
        (
            "export REDIS",
            "hotplate import",
            "hotplate keys",
            "hotplate plan",
            "hotplate releases",
            "hotplate store",
            "OLD=",
            "redis-cli",
            "stop ",
        ),
        OPERATIONS,
    )
    | {"k8s/targets/systemd/install": MACHINE, "apt-get": MACHINE},
    "docs/quickstart.md": {
        "make demo": "tests/cli/test_main.py runs the demo",
        "pip install": PACKAGES,
    },
    "docs/redis.md": {
        "ACL SETUSER": "tests/stores/redis/test_rights.py creates these users and needs no other rights",
        "hotplate serve --store 'redis+sentinel": "needs sentinels; tests/serve/test_failovers.py has them",
        "hotplate serve --store 'redis+cluster": "needs a cluster; tests/stores/test_contract.py has one",
        "pip install": PACKAGES,
    },
    "docs/releases.md": {
        "hotplate releases list": "a list of the verbs; tests/cli/test_store.py runs them",
        "draft →": "a diagram",
        "hotplate serve --store redis://cache:6379/0 --probation": (
            "waits for minutes; tests/serve/releases/test_probation.py has a virtual clock"
        ),
    },
    "docs/run.md": {
        "15 3 * * *": "a line for cron",
        "pip install": PACKAGES + "; tests/offline/test_mlflow_models.py registers models",
    },
    "docs/runbook.md": dict.fromkeys(("hotplate ", "curl ", "admin ", "export STORE"), RUNBOOK)
    | {"kubectl": CLUSTER, "journalctl": "reads the journal of systemd"},
    "docs/scoring.md": {
        "WITH visits": "the dialect of Azure Stream Analytics, which nothing here reads",
        "hotplate bench": IDLE + "loadgen/test_load.py",
    },
    "docs/security.md": {
        "pip install": PACKAGES + "; tests/serve/access/test_oidc.py has an issuer",
        "hotplate users accept-loss": "needs a lost record; tests/stores/test_erasure.py loses one",
    },
    "docs/rules.md": {"b": "a formula; tests/offline/test_rules.py has its properties"},
    "docs/sizing.md": {
        "hotplate plan --users 2M --peak-rps 800 --from-release": (
            "plans from a measurement of an idle machine, or refuses; tests/cli/test_plan.py has kept ones"
        ),
        "hotplate plan --open": "serves a page until Ctrl-C; tests/bench/planner/test_planner_page.py opens it",
        "hotplate plan --prices-from-azure": "asks Azure for prices; tests/bench/planner has its answers",
    }
    | dict.fromkeys(("Cheapest for", "Short by", "400 RU/s carry", "…"), OUTPUT + "tests/cli/test_plan.py"),
    "docs/stores.md": {"hotplate bench": IDLE + "test_stores.py"},
    "docs/spark.md": dict.fromkeys(("pip install", "spark-submit"), "needs Spark; make spark-test has it"),
}

# Blocks that take many seconds run in the soak, after the others of their page.
SLOW = {
    "docs/cosmos.md": {"export HOTPLATE": True, "HOTPLATE_COSMOS": True, "hotplate releases": True},
    "docs/evaluation.md": {"hotplate train": True},
    "docs/quickstart.md": {"hotplate train": True},
    "docs/run.md": {"hotplate run": True},
    "docs/training.md": {"hotplate train": True, "hotplate publish": True, "hotplate import": True},
    "README.md": {"hotplate bench ": True, "hotplate train": True, "curl ": True},
    "docs/sizing.md": {"hotplate bench charges": True},
}

# Blocks that are files, which the commands of their page read.
FILES = {
    "docs/releases.md": {'model = "basket-model"': "basket.toml"},
    "docs/run.md": {"[train]": "nightly.toml"},
    "docs/quickstart.md": {"user_id,": "first-lines.csv"},
    "docs/serving.md": {"# lines": "deny-list", "item,stock": "overrides.csv"},
}

# Commands before a page, and before a block, for what the text assumes.
SERVES = "hotplate serve"
READY = "hotplate publish model --no-activate; ID=$(release ready)"
NEXT = """curl "$SERVICE/v1/recommendations/42?n=10&after=0" | grep --only-matching '"next":"[^"]*' | cut -c9-"""
BEFORE = {
    "docs/events.md": {
        "hotplate events ship": "stop",
        "hotplate publish model-b": READY,
    },
    "docs/integration.md": {"": SERVES},
    "docs/releases.md": {
        "hotplate lookup 42": f"{READY}; {SERVES}",
        "hotplate publish --list": SERVES,
        "hotplate publish model --no-activate": f"hotplate releases rollback; {READY}",
        "hotplate store rebuild": "accepted='2 3'; ID=$(release live); rm $FOLDER/var/lib/hotplate/catalogue.json",
    },
    "docs/scoring.md": {"": SERVES},
    "docs/serving.md": {
        "": f"{SERVES} --deny-list deny-list --overrides overrides.csv",
        'curl "http': f"NEXT=$({NEXT})",
    },
    "docs/security.md": {"hotplate users erase": "ID=A-00003"},
    "docs/sizing.md": {"": SERVES},
}

# Stands in the output before that of each block.
MARK = r'printf "\n<<%s>>\n" "$block"'

# A part of what the block prints.
PRINTS: dict[str, dict[str, str]] = {
    "README.md": {"hotplate train": '"user":"42"', "import asyncio": "personal "},
    "docs/integration.md": {
        "curl --silent 'http": '"source":"personal"',
        "curl --silent http://127.0.0.1:8080/v1/recommendations/fold-in": '"known":2',
        "import hotplate\n\nlists = hotplate.Client": "personal [",
        "import asyncio": "personal ",
    },
    "docs/quickstart.md": {"hotplate serve": '"source":"personal"'},
    "docs/scoring.md": {"curl": '"status":"ok"'},
}

# The first words of blocks without a language that run here.
RUNS = re.compile(r"(export |\w+=\S+ |hotplate |curl )")
# What reads a block that is not run; in JSON, … stands for what is left out.
READERS: dict[str, Callable[[str], object]] = {
    "json": lambda text: orjson.loads(text.replace("…]", "]")),
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
UNKNOWN = (
    "{block} is neither run nor listed. Give its fence a language of READERS, or sh, python or js, which run; begin it "
    "with a command of RUNS; or say in LISTED why it is not run."
)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name."""
    folder = tmp_path_factory.mktemp("ground")
    write_files(folder)
    return folder


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Programs that start at once."""
    with programs(tmp_path_factory.mktemp("programs") / "bin") as folder:
        yield folder


@pytest.fixture
def machine(tmp_path: Path, ground: Path, redis_server: RedisServer, cosmos_http: Account) -> Machine:
    """A reader's, whose stores have a release."""
    folder = tmp_path / "reader"
    shutil.copytree(ground, folder)
    redis = f"redis://127.0.0.1:{redis_server.port}/1"
    cosmos = cosmos_http.url(secrets.token_hex(4)).rstrip("?")
    succeeded("releases", "copy", "--from", f"file://{folder}/var/lib/hotplate", "--to", redis)
    return Machine(folder, redis, cosmos, reader_port(), free_port())


def entry(table: Mapping[str, Mapping[str, Value]], block: Block) -> Value | None:
    """Return what a table has for a block, by its page and by how it begins."""
    starts = [start for start in table.get(block.page, {}) if start and block.text.startswith(start)]
    return table[block.page][max(starts, key=len)] if starts else None


def way(block: Block) -> str:
    """Return what is done with a block: `listed`, a `file`, `run`, `soak` or `read`; or nothing."""
    if entry(LISTED, block):
        return "listed"
    if entry(FILES, block):
        return "file"
    if block.language in ("sh", "python", "js") or (not block.language and RUNS.match(block.text)):
        return "soak" if entry(SLOW, block) else "run"
    return "read" if block.language in READERS else ""


def of_way(page: str, *ways: str) -> list[Block]:
    return [block for block in blocks(page) if way(block) in ways]


def script_of(page: str, runs: list[Block], machine: Machine) -> str:
    """Return the script of a page, in the folder of the machine; prints the name of each block before its output."""
    for block in of_way(page, "file"):
        name = entry(FILES, block)
        assert name is not None
        (machine.folder / name).write_text(machine.around(block.text))
    parts = [PREAMBLE, BEFORE.get(page, {}).get("", "")]
    for block in runs:
        parts += [
            f"block={block}",
            entry(BEFORE, block) or "",
            'printf "\\n<<%s>>\\n" "$block"',
            command_of(block, machine),
        ]
    return "\n".join(parts)


def command_of(block: Block, machine: Machine) -> str:
    """Return the lines of a shell that run a block."""
    text = machine.around(block.text)
    if block.language == "python":
        (machine.folder / f"example_{block.line}.py").write_text(text)
        return f"python example_{block.line}.py"
    if block.language == "js":
        (machine.folder / f"example_{block.line}.mjs").write_text(NODE_PREAMBLE + text)
        return f"{tool('node')} example_{block.line}.mjs"
    return text


def run_page(page: str, runs: list[Block], machine: Machine, forked: Path, limit_s: float) -> None:
    (machine.folder / "page.sh").write_text(script_of(page, runs, machine))
    path = os.pathsep.join([str(forked), os.environ["PATH"]])
    done = run_process(
        tool("timeout"),  # also ends what the script has started
        limit_s,
        tool("bash"),
        "page.sh",
        cwd=machine.folder,
        input="y\n" * 9,
        env=os.environ | machine.environment | {"PATH": path, "TERM": "dumb"},
    )
    printed = dict(re.findall(r"^<<(.*?)>>\n(.*?)(?=^<<|\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    for block in runs:
        expected = entry(PRINTS, block)
        assert expected is None or expected in printed[str(block)], f"{block} printed {printed[str(block)]}"


@pytest.mark.parametrize("page", [page for page in PAGES if of_way(page, "run")])
def test_blocks_of_a_page_run_as_they_stand(page: str, machine: Machine, forked: Path) -> None:
    run_page(page, of_way(page, "run"), machine, forked, 200)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if of_way(page, "soak")])
def test_slow_blocks_of_a_page_run_as_they_stand(page: str, machine: Machine, forked: Path) -> None:
    run_page(page, of_way(page, "run", "soak"), machine, forked, 850)


@pytest.mark.parametrize("page", PAGES)
def test_other_blocks_of_a_page_are_read_or_listed(page: str) -> None:
    for block in blocks(page):
        assert way(block), UNKNOWN.format(block=block)
        if way(block) == "read":
            READERS[block.language](block.text)


def test_every_entry_of_the_tables_fits_a_block_and_tests_that_it_names_exist() -> None:
    for table in (LISTED, SLOW, FILES, BEFORE, PRINTS):
        for page, starts in table.items():
            unused = [start for start in starts if not any(block.text.startswith(start) for block in blocks(page))]
            assert unused == [], page
    reasons = " ".join(reason for starts in LISTED.values() for reason in starts.values())
    assert [path for path in re.findall(r"tests/[\w/]+(?:\.py)?", reasons) if not (ROOT / path).exists()] == []
