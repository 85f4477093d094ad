"""The table of routes: what is missing beside a row is an error at import."""

import sys
from pathlib import Path

import pytest

from hotplate.serve.api.routes import OPERATIONS
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import a_list, publish_lists, running


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ('"GET", "/v1/no-route", "no_handler"', "'ListHandlers' has no attribute 'no_handler'"),
        ('"POST", "/v1/popular", "popular"', "ImportError: a path has two rows"),
    ],
)
def test_incomplete_row_is_an_error_at_import(row: str, error: str) -> None:
    source = (ROOT / "serve/api/routes.py").read_text()
    table = "OPERATIONS = (\n"
    assert table in source
    source = source.replace(table, f"{table}    Operation({row}),\n")
    program = (
        "import sys, types\n"
        "name = 'hotplate.serve.api.routes'\n"
        "module = sys.modules[name] = types.ModuleType(name)\n"
        "exec(sys.stdin.read(), vars(module))\n"
        "import hotplate.serve.api.app\n"
    )
    done = run_process(sys.executable, "-c", program, code=1, input=source, cwd=ROOT)
    assert error in done.stderr.splitlines()[-1]


async def test_every_row_is_answered_and_counted_under_its_label(tmp_path: Path) -> None:
    await publish_lists(tmp_path / "store", {"user:42": a_list("a")})
    with running(tmp_path / "store", "--events", str(tmp_path / "events")) as service:
        for operation in OPERATIONS:
            path = operation.path.replace("{file}", "start.js").replace("{user}", "42").replace("{item}", "a")
            answer = service.request(operation.method, path, b"{}" if operation.body else None)
            assert answer.status < 500, path
            label = f'hotplate_http_request_duration_seconds_count{{code="{answer.status}",method="{operation.method}",'
            assert f'{label}route="{operation.template}"}}' in service.admin("/metrics").body.decode(), path
