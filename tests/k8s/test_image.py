"""The Dockerfile, its build context, and the health check of an image."""

import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.kubernetes import K8S, VERSION, tool
from tests.support.paths import ROOT
from tests.support.processes import run_process
from tests.support.service import publish_lists, running, until

pytestmark = pytest.mark.k8s
DOCKERFILE = K8S / "Dockerfile"
# One instruction a line, without comments.
LINES = [
    line
    for line in re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    if line.strip()
]
STAGES = [line.split()[-1] for line in LINES if line.startswith("FROM ")]


def locked(name: str) -> dict[str, set[str]]:
    """Return the versions of each package in a lock file."""
    versions: dict[str, set[str]] = {}
    text = (ROOT / f"requirements/{name}.lock").read_text()
    for package, version in re.findall(r"^([a-z0-9.-]+)==([^ ]+)", text, re.MULTILINE):
        versions.setdefault(package, set()).add(version)
    return versions


def test_hadolint_finds_nothing() -> None:
    run_process(tool("hadolint"), DOCKERFILE)


def test_an_image_is_built_from_what_the_tests_ran_with() -> None:
    tested = locked("dev")
    # Installed by `make spark-test`, and MLflow's client, which the tests do not need.
    client = """
        cachetools databricks-sdk gitdb gitpython google-auth mlflow-skinny pyasn1 pyasn1-modules
        python-dotenv smmap uvicorn
    """
    beyond = {"spark": {"py4j", "pyspark"}, "offline": set(client.split())}
    for name in ("serve", "offline", "spark"):
        different = {package for package, versions in locked(name).items() if tested.get(package) != versions}
        assert different == beyond.get(name, set()), name


def test_the_serving_image_is_locked_without_what_only_training_needs() -> None:
    training = {"numpy", "scipy", "implicit", "polars"}
    assert not training & locked("serve").keys()
    assert training <= locked("offline").keys()
    assert locked("serve").keys() <= locked("offline").keys()


def test_every_package_is_installed_by_hash() -> None:
    for command in re.findall(r"tools/bin/pip [^&]*", "\n".join(LINES)):
        assert "--require-hashes" in command or "--no-deps" in command


@pytest.mark.timeout(900)  # of a slow index of packages
@pytest.mark.parametrize("name", ["serve", "offline"])
def test_locked_requirements_install_into_a_clean_environment(tmp_path: Path, name: str) -> None:
    python = tmp_path / "clean/bin/python"
    venv.create(tmp_path / "clean", with_pip=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    requirements = str(ROOT / f"requirements/{name}.lock")
    subprocess.run([*pip, "install", "--no-compile", "--require-hashes", "--requirement", requirements], check=True)
    subprocess.run([*pip, "check"], check=True)
    hotplate = [str(python), "-m", "hotplate", "serve" if name == "serve" else "train", "--help"]
    run_process(*hotplate, cwd=ROOT)


def test_images_run_unprivileged_and_start_hotplate() -> None:
    assert [line for line in LINES if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert [line for line in LINES if line.startswith("ENTRYPOINT ")] == ['ENTRYPOINT ["/opt/hotplate/bin/hotplate"]']


def test_the_default_target_serves() -> None:
    assert STAGES[-1] == "serve"
    assert {"serve", "offline", "spark"} <= set(STAGES)


def test_the_label_has_the_version_of_the_repository() -> None:
    assert f"ARG VERSION={VERSION}" in LINES


def test_everything_copied_is_in_the_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in LINES:
        if line.startswith("COPY ") and "--from" not in line:
            for source in (word for word in line.split()[1:-1] if not word.startswith("--")):
                assert (ROOT / source).exists(), source
                assert source in kept or Path(source).parts[0] in kept, source


async def test_the_health_check_follows_the_service(tmp_path: Path) -> None:
    def check(port: int) -> int:
        words = [sys.executable, "-I", str(K8S / "healthcheck.py")]
        return subprocess.run(
            words, env={"HOTPLATE_HEALTH_PORT": str(port)}, capture_output=True, check=False
        ).returncode

    await publish_lists(tmp_path / "store", {})
    with running(tmp_path / "store") as service:
        until(lambda: check(service.health_port) == 0, "the check does not succeed")  # it waits 2 s at most
    assert check(service.health_port) == 1
