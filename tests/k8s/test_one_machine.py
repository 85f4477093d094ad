"""The kit for one machine: backups by the unit, Prometheus with its configuration on a real service, and compose."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from hotplate.bench.process import free_port
from hotplate.serve.access.keys import create
from tests.support.command import succeeded
from tests.support.kubernetes import K8S, VERSION, tool
from tests.support.monitoring import panel_expressions
from tests.support.processes import run_process
from tests.support.service import a_list, published, running, until

pytestmark = pytest.mark.k8s
SYSTEMD = K8S / "targets/systemd"
COMPOSE = K8S / "targets/compose"
# Panels of runs, remote stores and caches, certificates, refusals and models, which have no data here.
ELSEWHERE = re.compile("hotplate_(run|store|cache|certificate|shed|learnt)_")


def commands(unit: Path, name: str) -> list[str]:
    """Return the commands of a unit, as a shell takes them."""
    lines = [line.partition("=") for line in unit.read_text().splitlines()]
    return [value.lstrip("-").replace("%%", "%").replace(" {} ", " '{}' ") for key, _, value in lines if key == name]


def test_backup_unit_keeps_a_week_and_records_success(tmp_path: Path) -> None:
    published(tmp_path / "hotplate", {"user:42": a_list("a", "b")})
    backups = tmp_path / "hotplate-backups"
    metrics = tmp_path / "prometheus/node-exporter"
    metrics.mkdir(parents=True)
    old, recent = (backups / name for name in ("20260101T000000Z", "20260102T000000Z"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
    subprocess.run(["touch", "--date", "9 days ago", str(old)], check=True)
    unit = SYSTEMD / "hotplate-backup.service"
    steps = [command for name in ("ExecStartPre", "ExecStart", "ExecStartPost") for command in commands(unit, name)]
    script = "\n".join(["set -e", "export KEEP_DAYS=7", *steps])
    script = script.replace("/opt/hotplate/bin/hotplate", f"{Path(sys.executable).parent}/hotplate")

    def backed_up(store: Path) -> bool:
        environment = {"HOTPLATE_STORE": f"file://{store}", "PATH": "/usr/bin:/bin"}
        command = ["sh", "-c", script.replace("/var/lib", str(tmp_path))]
        return subprocess.run(command, env=environment, check=False).returncode == 0

    assert not backed_up(tmp_path / "none")
    (path,) = metrics.iterdir()
    assert abs(time.time() - int(path.read_text().split()[1])) < 3600, "the alert waits from the first attempt on"
    path.write_text("hotplate_backup_last_success_timestamp_seconds 1\n")
    assert not backed_up(tmp_path / "none")
    assert path.read_text().endswith(" 1\n")
    assert backed_up(tmp_path / "hotplate")
    (backup,) = set(backups.iterdir()) - {recent}
    succeeded("releases", "verify", "--store", f"file://{backup}")
    (path,) = metrics.iterdir()
    name, value = path.read_text().split()
    assert (path.suffix, name) == (".prom", "hotplate_backup_last_success_timestamp_seconds")
    assert abs(time.time() - int(value)) < 3600


def replace(path: Path, texts: dict[str, str]) -> None:
    """Replace texts of a file, all of which are there."""
    text = path.read_text()
    for stated, used in texts.items():
        assert stated in text
        text = text.replace(stated, used)
    path.write_text(text)


def asked(url: str, **query: str) -> Any:  # noqa: ANN401 -- JSON is whatever it is
    """Return what Prometheus's HTTP API answers."""
    with urlopen(f"{url}?{urlencode(query)}", timeout=30) as response:
        return json.load(response)["data"]


def fires(url: str, alert: str) -> bool:
    """Return whether an alert fires for this machine; while Prometheus starts, none does."""
    with suppress(URLError, ConnectionError):
        alerts = [(alert["labels"]["alertname"], alert["state"]) for alert in asked(f"{url}/alerts")["alerts"]]
        return (alert, "firing") in alerts
    return False


def empty_panels(url: str) -> set[str]:
    """Return the panels that show nothing, of those that a service on files has something for."""
    return {
        panel
        for panel, expression in panel_expressions()
        if not ELSEWHERE.search(expression) and not asked(f"{url}/query", query=expression)["result"]
    }


def test_the_installer_of_monitoring_asks_for_the_address_of_the_runbook(tmp_path: Path) -> None:
    environment = os.environ | {"DESTDIR": str(tmp_path)}
    done = run_process(SYSTEMD / "install-monitoring", code=None, env=environment)
    assert (done.returncode, done.stdout, [*tmp_path.iterdir()]) == (2, "", [])
    assert done.stderr.startswith("usage: install-monitoring URL")


def test_prometheus_scrapes_with_the_key_fires_an_alert_and_fills_the_panels(tmp_path: Path) -> None:
    installer = [str(SYSTEMD / "install-monitoring"), "https://shop.example/runbook"]
    subprocess.run(installer, env=os.environ | {"DESTDIR": str(tmp_path)}, check=True)
    folder = tmp_path / "etc/prometheus"
    keys = tmp_path / "keys.json"
    port = free_port()
    admin, web = (create(keys, name, [scope]).key for name, scope in (("prometheus", "admin"), ("web", "read")))
    (folder / "hotplate.key").write_text(admin)
    published(tmp_path / "store", {"user:42": a_list("a", "b")})
    with running(tmp_path / "store", "--keys", str(keys), "--admin-host", "0.0.0.0") as service:
        replace(
            folder / "hotplate-rules.yaml",
            {"(hotplate_release_age_seconds) > 180000": "(hotplate_release_age_seconds) > 0"},
        )
        replace(
            folder / "prometheus.yml",
            {
                "/etc/prometheus": str(folder),
                "_interval: 30s": "_interval: 1s",
                "127.0.0.1:8090": f"127.0.0.1:{service.admin_port}",
            },
        )
        command = [tool("prometheus"), f"--config.file={folder}/prometheus.yml"]
        command += [f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{port}"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/api/v1"
            until(lambda: fires(url, "HotplateReleaseTooOld"), "no alert fires")
            for user in ("42", "1"):
                assert service.get(f"/v1/recommendations/{user}", X_API_Key=web).status == 200
            assert service.get("/v1/popular").status == 401
            until(lambda: not empty_panels(url), "panels are empty")
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_compose_is_valid_and_mounts_existing_paths() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE / "compose.yaml")]
    run_process(*command)
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    images = {service["image"] for service in services.values() if "build" in service}
    assert images == {f"hotplate:{VERSION}", f"hotplate-offline:{VERSION}"}
    bound = [
        volume.split(":")[0] for service in services.values() for volume in service["volumes"] if volume.startswith(".")
    ]
    created = {path for path in bound if path.split("/")[1] in {"data", "keys", "secrets"}}  # by the lines of the docs
    assert [path for path in bound if path not in created and not (COMPOSE / path).exists()] == []


def test_compose_prometheus_accepts_its_configuration_and_rules(tmp_path: Path) -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    services = compose["services"]
    script, _, _ = services["prometheus"]["command"][0].replace("$$", "$").partition("exec ")
    # First the script's own paths: the checkout may lie below /tmp.
    script = script.replace("/tmp/", f"{tmp_path}/").replace("/etc/hotplate", str(K8S / "monitoring"))
    subprocess.run(["sh", "-ec", script], env=services["prometheus"]["environment"] | {"PATH": "/bin"}, check=True)
    configuration = compose["configs"]["prometheus"]["content"].replace("/tmp/", f"{tmp_path}/")
    (tmp_path / "prometheus.yml").write_text(configuration.replace("/etc/prometheus", str(tmp_path)))
    (tmp_path / "hotplate.key").write_text("key")
    done = subprocess.run([tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")], check=False)
    assert done.returncode == 0
