"""The TypeScript client of docs/integration.md: generated from a running service, checked by the compiler, and run."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.npm import installed
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import a_list, published, running

pytestmark = pytest.mark.k8s
SECTION = (ROOT / "docs" / "integration.md").read_text().partition("## TypeScript\n")[2].partition("\n## ")[0]
PACKAGES = re.findall(r"[\w-]+@\d+\.\d+\.\d+", SECTION)
GENERATE, COMPILE = re.findall(r"^    npx (.*)$", SECTION, re.MULTILINE)
(PROGRAM,) = re.findall(r"```ts\n(.*?)```", SECTION, re.DOTALL)
# More checks of the types; `@ts-expect-error` fails if there is no error.
MORE = """
const { data } = await service.POST("/v1/recommendations", { body: { users: ["42"], n: 1 } });
console.log(JSON.stringify(data?.results.map((one) => one.items.map((item) => item.id))));
const rest = await service.GET("/v1/recommendations/{user}", {
  params: { path: { user: "42" }, query: { n: 2, exclude: ["a", "b"] } },
});
console.log(JSON.stringify(rest.data?.items.map((item) => item.id)));
// An attribute that the release shows.
void rest.data?.items.map((item) => item.filled === true || String(item.price));
// @ts-expect-error -- no such route
void service.GET("/v1/recommendations/{person}", { params: { path: { person: "42" } } });
// @ts-expect-error -- no such parameter
void service.GET("/v1/recommendations/{user}", { params: { path: { user: "42" }, query: { many: 1 } } });
// @ts-expect-error -- no such field
void data?.results.map((one) => one.names);
"""


def test_generated_types_compile_and_reject_unknown_fields(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    packages = installed(pytestconfig, *PACKAGES)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    published(tmp_path / "store", {"user:42": a_list("a", "b", "c", "d")})
    with running(tmp_path / "store") as service:
        stated = "127.0.0.1:8080"
        used = f"127.0.0.1:{service.port}"

        def run(command: str) -> str:
            program, *words = shlex.split(command.replace(stated, used))
            executable = shutil.which(program, path=packages / "node_modules" / ".bin") or program
            done = run_process(executable, *words, cwd=tmp_path)
            return done.stdout

        run(GENERATE)
        program = (PROGRAM + MORE).replace(stated, used).replace("timeout(250)", "timeout(60000)")
        (tmp_path / "lists.ts").write_text(program)
        run(COMPILE)
        assert run("node lists.js").splitlines()[:3] == ['["a","b","c"]', '[["a"]]', '["c","d"]']
