"""The Dockerfile, what it takes into an image, and how it is executed where there is no container engine."""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s.image.root import Builder, DockerfileError, ignored, parse
from tests.support.kubernetes import K8S, tool
from tests.support.paths import ROOT
from tests.support.service import publish_lists, running

pytestmark = pytest.mark.k8s
DOCKERFILE = K8S / "Dockerfile"
STAGES = parse(DOCKERFILE.read_text())


def locked(name: str) -> dict[str, set[str]]:
    """Return the versions of each package in a lock file."""
    found: dict[str, set[str]] = {}
    text = (ROOT / f"requirements/{name}.lock").read_text()
    for package, version in re.findall(r"^([a-z0-9.-]+)==([^ ]+)", text, re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


def copied() -> Iterator[str]:
    """Yield what the Dockerfile copies out of the repository."""
    for stage in STAGES.values():
        for instruction in stage.instructions:
            if instruction.name == "COPY" and "from" not in instruction.options:
                yield from instruction.words({})[:-1]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_an_image_is_built_from_what_the_tests_ran_with() -> None:
    tested = locked("dev")
    # What `make spark-test` installs beside the rest.
    beyond = {"spark": {"py4j", "pyspark"}}
    for name in ("serve", "offline", "spark"):
        others = {package for package, versions in locked(name).items() if tested.get(package) != versions}
        assert others == beyond.get(name, set()), name


def test_the_serving_image_is_locked_without_what_only_training_needs() -> None:
    training = {"numpy", "scipy", "implicit", "polars"}
    assert not training & locked("serve").keys()
    assert training <= locked("offline").keys()
    assert locked("serve").keys() <= locked("offline").keys()


def test_every_package_is_installed_by_hash() -> None:
    for line in DOCKERFILE.read_text().replace("\\\n", " ").splitlines():
        for command in re.findall(r"tools/bin/pip [^&]*", line):
            assert "--require-hashes" in command or "--no-deps" in command


def test_every_target_runs_as_nobody_and_says_how_it_starts() -> None:
    for name in ("serve", "offline", "spark"):
        stage, users, entries = STAGES[name], [], []
        while True:
            users += [one.value for one in reversed(stage.instructions) if one.name == "USER"]
            entries += [one.command() for one in stage.instructions if one.name == "ENTRYPOINT"]
            if stage.base not in STAGES:
                break
            stage = STAGES[stage.base]
        assert users[0] == "10001:10001"
        assert entries == [["/opt/hotplate/bin/hotplate"]]


def test_the_default_target_serves() -> None:
    assert list(STAGES)[-1] == "serve"


def test_the_label_has_the_version_of_the_repository() -> None:
    [version] = [one.value for one in STAGES["runtime"].instructions if one.value.startswith("VERSION=")]
    assert version == f"VERSION={importlib.metadata.version('hotplate')}"


def test_what_is_copied_is_in_the_context_and_nothing_else_is() -> None:
    patterns = (ROOT / ".dockerignore").read_text()
    sources = list(copied())
    assert not [source for source in sources if ignored(patterns, source)]
    for path in ("Makefile", ".git/config", "tests/conftest.py", "k8s/base/deployment.yaml", "serve/__pycache__/x.pyc"):
        assert ignored(patterns, path), path


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("ONBUILD RUN true", "not known"),
        ("COPY --link a b", "--link a b' is not known"),
        ("COPY --chown=1 a b", "--chown=1 a b' is not known"),
        ("LABEL name", "LABEL: ValueError"),
        ("ENV PATH=$NOWHERE", "KeyError..NOWHERE"),
        ('CMD ["serve"', "JSONDecodeError"),
        ("HEALTHCHECK NONE", "not understood"),
        ("COPY tests /tests", "not in the context"),
    ],
)
def test_what_is_not_understood_is_an_error_that_names_the_line(line: str, sentence: str, tmp_path: Path) -> None:
    base = tmp_path / "debian-bookworm"
    base.mkdir()
    with pytest.raises(DockerfileError, match=f"line 2, .*{sentence}"):
        Builder(parse(f"FROM debian:bookworm-slim AS one\n{line}\n"), ROOT, tmp_path).build("one")


def test_stages_copy_from_each_other_and_are_built_once(tmp_path: Path) -> None:
    (tmp_path / "debian-bookworm").mkdir()
    (tmp_path / "context").mkdir()
    (tmp_path / "context/.dockerignore").write_text("*\n!kept\n!linked\n")
    (tmp_path / "context/kept").write_text("first")
    (tmp_path / "context/linked").mkdir()
    (tmp_path / "context/linked/back").symlink_to("..")
    text = (
        "FROM debian:bookworm-slim AS one\nWORKDIR /work\nCOPY kept ./\nCOPY linked linked/\n"
        "FROM debian:bookworm-slim AS two\nARG NAME=x\nENV NAME=$NAME \\\n  # a comment within\n  OTHER=y\n"
        'COPY --from=one /work /there\nUSER 1:1\nCMD ["a"]\n'
    )
    builder = Builder(parse(text), tmp_path / "context", tmp_path)
    image = builder.build("two")
    assert (image.root / "there/kept").read_text() == "first"
    assert str((image.root / "there/linked/back").readlink()) == ".."
    assert image.environment() | {"PATH": ""} == {"PATH": "", "NAME": "x", "OTHER": "y"}
    assert image.config["Cmd"] == ["a"]
    (image.root / "marked").touch()
    assert (builder.build("two").root / "marked").exists(), "nothing changed, and it is built anew"
    (tmp_path / "context/kept").write_text("second")
    changed = builder.build("two").root
    assert (changed / "there/kept").read_text() == "second"
    assert not (changed / "marked").exists()


async def test_the_health_check_follows_the_service(tmp_path: Path) -> None:
    def check(port: int) -> int:
        words = [sys.executable, "-I", str(K8S / "image/healthcheck.py")]
        return subprocess.run(
            words, env={"HOTPLATE_HEALTH_PORT": str(port)}, capture_output=True, check=False
        ).returncode

    await publish_lists(tmp_path / "store", {})
    with running(tmp_path / "store") as service:
        assert check(service.health_port) == 0
    assert check(service.health_port) == 1
