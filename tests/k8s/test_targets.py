"""What runs hotplate, in Kubernetes and elsewhere: started as it says, and valid by a schema if there is one."""

import copy
import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pycep
import pytest
import yaml

from hotplate.cli.run_work import read_job, read_pipeline
from tests.support.azure_models import unknown
from tests.support.command import hotplate
from tests.support.kubernetes import K8S, VERSION, built, tool
from tests.support.policies import LIVENESS_S
from tests.support.processes import run_process
from tests.support.service import a_list, publish_lists, published, started, until

pytestmark = pytest.mark.k8s
TARGETS = K8S / "targets"
BICEP = sorted((TARGETS / "azure").glob("*.bicep"))
ENTRYPOINT = "/opt/hotplate/bin/hotplate"
# The default address of the health listener, which the image's health check uses.
HEALTH_PORT = 8091
# Where a file of a target keeps what a test has in a folder of its own, and what it reads that no test can reach.
DATA, KEYS, FAR_AWAY = "/var/lib/hotplate", "/etc/hotplate/keys", r"^(cosmos|rediss?)://.*"
# The properties of Azure's resources, as the library of each service knows them.
MODELS = {
    "Microsoft.Authorization/roleAssignments": "authorization.RoleAssignmentCreateParameters",
    "Microsoft.Cache/redisEnterprise": "redisenterprise.Cluster",
    "Microsoft.Cache/redisEnterprise/databases": "redisenterprise.Database",
    "Microsoft.ContainerService/managedClusters": "containerservice.ManagedCluster",
    "Microsoft.DocumentDB/databaseAccounts": "cosmosdb.DatabaseAccountCreateUpdateParameters",
    "Microsoft.DocumentDB/databaseAccounts/sqlDatabases": "cosmosdb.SqlDatabaseCreateUpdateParameters",
    "Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments": "cosmosdb.SqlRoleAssignmentCreateUpdateParameters",
    "Microsoft.ManagedIdentity/userAssignedIdentities": "msi.Identity",
    "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials": "msi.FederatedIdentityCredential",
    "Microsoft.OperationalInsights/workspaces": "loganalytics.Workspace",
}
# Of the library of networks, which weighs more than all others together.
NO_MODEL = {
    "Microsoft.Insights/diagnosticSettings",
    "Microsoft.Network/privateDnsZones",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks",
    "Microsoft.Network/privateEndpoints",
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
}


@dataclass(frozen=True, slots=True)
class Target:
    """How one file starts the service: arguments, environment, routes of probes, and seconds until it is killed.

    stop_s      after a signal to stop
    liveness_s  after it has hung
    """

    command: list[str]
    environment: dict[str, str]
    probes: dict[str, int]
    stop_s: float | None = None
    liveness_s: float | None = None


def read(path: str) -> Any:  # noqa: ANN401 -- YAML and JSON are whatever they are
    return yaml.safe_load((TARGETS / path).read_text())


def model_of(name: str) -> Any:  # noqa: ANN401 -- a class of the library's own
    """Return a model of a library of Azure, such as `msi.Identity`."""
    service, _, kind = name.partition(".")
    return getattr(import_module(f"azure.mgmt.{service}.models"), kind)


def container_instances() -> Target:
    properties = read("container-instances/group.yaml")["properties"]["containers"][0]["properties"]
    probes = [properties[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")]
    environment = {entry["name"]: entry["value"] for entry in properties["environmentVariables"]}
    liveness = properties["livenessProbe"]
    return Target(
        properties["command"],
        environment,
        {entry["path"]: entry["port"] for entry in probes},
        liveness_s=liveness["periodSeconds"] * liveness["failureThreshold"],
    )


def container_apps() -> Target:
    template = read("container-apps/app.yaml")["properties"]["template"]
    container = template["containers"][0]
    probes = {entry["httpGet"]["path"]: entry["httpGet"]["port"] for entry in container["probes"]}
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    (liveness,) = (probe for probe in container["probes"] if probe["type"] == "Liveness")
    return Target(
        container["command"] + container["args"],
        environment,
        probes,
        template["terminationGracePeriodSeconds"],
        liveness["periodSeconds"] * liveness["failureThreshold"],
    )


def azure_ml() -> Target:
    deployment = read("azure-ml/deployment.yaml")
    routes = deployment["environment"]["inference_config"]
    probes = {routes[name]["path"]: routes[name]["port"] for name in ("liveness_route", "readiness_route")}
    liveness = deployment["liveness_probe"]
    return Target(
        [ENTRYPOINT, "serve"],
        deployment["environment_variables"],
        probes,
        liveness_s=liveness["period"] * liveness["failure_threshold"],
    )


def iot_edge(module: str = "hotplate") -> Target:
    modules = read("iot-edge/deployment.json")["modulesContent"]["$edgeAgent"]
    configured = modules[f"properties.desired.modules.{module}"]
    options = json.loads(configured["settings"]["createOptions"])
    environment = {name: variable["value"] for name, variable in configured["env"].items()}
    command = options.get("Entrypoint", [ENTRYPOINT]) + options["Cmd"]
    return Target(command, environment, {"/livez": HEALTH_PORT}, options.get("StopTimeout"))


def systemd() -> Target:
    unit = [line.partition("=") for line in (TARGETS / "systemd/hotplate.service").read_text().splitlines()]
    environment = dict(value.split("=", 1) for name, _, value in unit if name == "Environment")
    [command] = [value.split() for name, _, value in unit if name == "ExecStart"]
    [stop_s] = [float(value) for name, _, value in unit if name == "TimeoutStopSec"]
    return Target(command, environment, {"/livez": HEALTH_PORT, "/readyz": HEALTH_PORT}, stop_s)


def compose() -> Target:
    service = read("compose/compose.yaml")["services"]["hotplate"]
    # The image's health check is the probe.
    return Target(
        [ENTRYPOINT, "serve"], service["environment"], {"/livez": HEALTH_PORT}, float(service["stop_grace_period"][:-1])
    )


def kubernetes() -> Target:
    """Return how the pods of the edge start, which read a folder as the others do here."""
    objects = built("overlays/edge")
    [deployment] = [resource for resource in objects if resource["kind"] == "Deployment"]
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    name = container["envFrom"][0]["configMapRef"]["name"]
    [environment] = [
        resource["data"]
        for resource in objects
        if (resource["kind"], resource["metadata"]["name"]) == ("ConfigMap", name)
    ]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    probes = [container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
    stop_s = spec["terminationGracePeriodSeconds"] - float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    return Target(
        [ENTRYPOINT, *container["args"]],
        environment,
        {resource["path"]: ports[resource["port"]] for resource in probes},
        stop_s,
    )


ALL = [container_instances, container_apps, azure_ml, iot_edge, systemd, compose, kubernetes]


def here(environment: dict[str, str], folder: Path) -> list[str]:
    """Return what starts a command with just this environment, its files and its store in *folder*."""
    moved = {
        name: re.sub(FAR_AWAY, f"file://{folder}/data", value)
        .replace(DATA, f"{folder}/data")
        .replace(KEYS, f"{folder}/keys")
        for name, value in environment.items()
    }
    moved |= {"HOTPLATE_PORT": "0", "HOTPLATE_ADMIN_PORT": "0", "HOTPLATE_HEALTH_PORT": "0"}
    moved |= {"HOTPLATE_DRAIN_DELAY": "0"}
    return ["env", "--ignore-environment", *(f"{name}={value}" for name, value in moved.items())]


@pytest.mark.parametrize("target", ALL)
async def test_each_target_starts_and_answers_its_probes(target: Any, tmp_path: Path) -> None:  # noqa: ANN401 -- a function
    described: Target = target()
    (tmp_path / "keys").mkdir()
    key = hotplate("keys", "create", "web", "--scope", "read", "--keys", tmp_path / "keys/keys.json").stdout.split()[-1]
    await publish_lists(tmp_path / "data", {"user:42": a_list("a", "b")})
    assert described.command[0] == ENTRYPOINT
    (probed,) = set(described.probes.values())
    port = int(described.environment["HOTPLATE_PORT"])
    assert probed in {port, int(described.environment.get("HOTPLATE_HEALTH_PORT", HEALTH_PORT))}
    command = [*here(described.environment, tmp_path), sys.executable, "-m", "hotplate", *described.command[1:]]
    with started(tmp_path, command) as service:
        # A worker begins without a release if the first read takes long.
        until(lambda: service.health("/readyz").status == 200, "no release is read")
        request = service.get if probed == port else service.health
        for path in described.probes:
            assert request(path).status == 200
        if "HOTPLATE_KEYS" in described.environment:
            assert service.get("/v1/recommendations/42").status == 401
            assert service.get("/v1/recommendations/42", X_API_Key=key).json["source"] == "personal"
        else:
            # A platform that has checked its own key may hand it on.
            answer = service.post("/score", b'{"data": [["42", "1"]]}', Authorization="Bearer of-the-platform")
            assert (answer.status, answer.json[0]["status"]) == (200, "ok")


@pytest.mark.parametrize("target", ALL)
def test_only_systemd_and_compose_turn_probation_on(target: Any) -> None:  # noqa: ANN401 -- a function
    described: Target = target()
    assert ("HOTPLATE_PROBATION" in described.environment) == (target in (systemd, compose))


@pytest.mark.parametrize("target", ALL)
def test_each_stop_is_long_enough_for_the_drain(target: Any) -> None:  # noqa: ANN401 -- a function
    stopped: Target = target()
    if stopped.stop_s is not None:
        assert stopped.stop_s > sum(float(stopped.environment[f"HOTPLATE_{name}"]) for name in ("DRAIN_DELAY", "DRAIN"))


@pytest.mark.parametrize("target", [container_instances, container_apps, azure_ml])
def test_each_liveness_probe_lets_the_service_replace_a_worker(target: Any) -> None:  # noqa: ANN401 -- a function
    described: Target = target()
    assert described.liveness_s is not None
    assert described.liveness_s >= LIVENESS_S


def test_edge_copies_the_live_release(tmp_path: Path) -> None:
    release = published(tmp_path / "far", {})
    copier = iot_edge("hotplate-copy")
    environment = copier.environment | {
        "HOTPLATE_FROM": f"file://{tmp_path}/far",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    catalogue = tmp_path / "data/catalogue.json"
    process = subprocess.Popen([*here(environment, tmp_path), *copier.command], stderr=subprocess.DEVNULL)
    try:
        until(lambda: catalogue.exists() and json.loads(catalogue.read_text())["live"] == release, "nothing was copied")
    finally:
        process.terminate()
    # As process 1 of its container, a shell ignores a signal for which it has no trap.
    assert process.wait(timeout=60) == 0


def stop_copier(folder: Path, program: str) -> int:
    """Run the copier with a script for `hotplate`, stop it once the file `begun` is there, and return its exit code."""
    stub = folder / "hotplate"
    stub.write_text(f"#!/bin/sh\n{program}")
    stub.chmod(0o755)
    command = iot_edge("hotplate-copy").command
    process = subprocess.Popen(command, env={"PATH": f"{folder}:/usr/bin:/bin"}, stderr=subprocess.DEVNULL)
    try:
        until((folder / "begun").exists, "nothing was started")
        process.terminate()
        return process.wait(timeout=60)
    finally:
        process.kill()


@pytest.mark.parametrize("verb", ["copy", "prune"])
def test_edge_stops_a_copy_before_it_ends(verb: str, tmp_path: Path) -> None:
    program = (
        f"[ $2 = {verb} ] || exit 0\ntrap 'touch {tmp_path}/stopped; exit 1' TERM\n"
        f"touch {tmp_path}/begun\nwhile :; do sleep 0.1; done\n"
    )
    assert stop_copier(tmp_path, program) == 0
    assert (tmp_path / "stopped").exists()


def test_edge_stops_a_command_that_missed_the_first_signal(tmp_path: Path) -> None:
    """A command that the shell has just forked may miss one."""
    program = (
        "signals=0\ntrap 'signals=$((signals + 1)); [ $signals -lt 2 ] || exit 1' TERM\n"
        f"touch {tmp_path}/begun\nwhile :; do sleep 0.1; done\n"
    )
    assert stop_copier(tmp_path, program) == 0


def test_edge_module_is_read_only_with_its_mounts() -> None:
    for module in ("hotplate", "hotplate-copy"):
        agent = read("iot-edge/deployment.json")["modulesContent"]["$edgeAgent"]
        options = json.loads(agent[f"properties.desired.modules.{module}"]["settings"]["createOptions"])
        host = options["HostConfig"]
        assert options["User"] == "10001:10001"
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        bound = [bind.split(":")[1] for bind in host["Binds"]]
        for path in re.findall(r"(?<![:/])/(?:etc|var)/[\w/]+", " ".join(iot_edge(module).environment.values())):
            assert any(path.startswith(folder) for folder in bound), path


def test_every_target_has_one_image_of_this_version() -> None:
    images = [
        image
        for path in sorted(TARGETS.rglob("*.*"))
        for image in re.findall(r"registry[\w./-]+/hotplate(?:-offline)?:[\w.]+", path.read_text())
    ]
    assert len(images) >= 5
    assert {image.rpartition("/")[2] for image in images} == {f"hotplate:{VERSION}", f"hotplate-offline:{VERSION}"}


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("container-instances/group.yaml", "containerinstance.ContainerGroup"),
        ("container-apps/app.yaml", "appcontainers.ContainerApp"),
    ],
)
def test_fields_and_values_of_containers_are_valid(path: str, model: str) -> None:
    resource = read(path)
    resource.pop("apiVersion", None)  # of the request
    assert list(unknown(model_of(model), resource)) == []


@pytest.mark.filterwarnings("ignore")  # of the library, to itself
def test_azure_machine_learning_loads_both_files() -> None:
    azure = import_module("azure.ai.ml")
    deployment = azure.load_online_deployment(TARGETS / "azure-ml/deployment.yaml")
    endpoint = azure.load_online_endpoint(TARGETS / "azure-ml/endpoint.yaml")
    assert (deployment.endpoint_name, deployment.instance_count) == (endpoint.name, 2)


@pytest.mark.filterwarnings("ignore")  # of the library, to itself
def test_azure_machine_learning_loads_the_batch_job_and_its_pipeline_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    azure = import_module("azure.ai.ml")
    batch = TARGETS / "azure-ml/batch"
    cluster = azure.load_compute(batch / "cluster.yaml")
    assert (cluster.type, cluster.tier, cluster.min_instances) == ("amlcompute", "low_priority", 0)
    component = azure.load_component(batch / "component.yaml")
    job = azure.load_job(batch / "job.yaml")
    assert job.settings.default_compute == cluster.name
    step = job.jobs["recommendations"]
    needed = {name for name, parameter in component.inputs.items() if parameter.get("default") is None}
    assert needed <= step.inputs.keys() <= component.inputs.keys()
    monkeypatch.setenv("HOTPLATE_STORE", component.inputs["store"]["default"])
    read = read_job(read_pipeline(batch / "nightly.toml"))
    assert f"ln -sfn ${{{{inputs.clicks}}}} {read.training_inputs[0].name} " in component.command
    assert "hotplate run nightly.toml" in component.command


@functools.cache
def _parsed(file: str) -> Any:  # noqa: ANN401 -- a tree
    return pycep.BicepParser().parse(text=(TARGETS / "azure" / file).read_text())


def bicep(file: str) -> Any:  # noqa: ANN401 -- a tree
    """Return the contents of one of the Bicep files; each caller gets a copy."""
    return copy.deepcopy(_parsed(file))


def resources() -> dict[str, Any]:
    """Return the resources of all Bicep files by file and name."""
    return {
        f"{path.stem}.{name}": resource for path in BICEP for name, resource in bicep(path.name)["resources"].items()
    }


@pytest.mark.parametrize("kind", MODELS)
def test_bicep_resource_fields_are_valid(kind: str) -> None:
    model = model_of(MODELS[kind])
    configs = [resource["config"] for resource in resources().values() if resource["type"] == kind]
    assert configs
    for config in configs:
        for not_of_the_body in ("name", "parent", "scope"):
            config.pop(not_of_the_body, None)
        assert list(unknown(model, config)) == []


def test_every_bicep_resource_type_is_checked_or_listed() -> None:
    assert {resource["type"] for resource in resources().values()} == MODELS.keys() | NO_MODEL


def test_bicep_modules_get_exactly_their_parameters() -> None:
    modules = bicep("main.bicep")["modules"].values()
    assert {module["detail"]["path"] for module in modules} == {"cosmos.bicep", "endpoint.bicep", "redis.bicep"}
    for module in modules:
        parameters = bicep(module["detail"]["path"])["parameters"]
        arguments = module["config"]["config"]["params"].keys()
        assert arguments <= parameters.keys()
        assert {name for name, parameter in parameters.items() if parameter.get("default") is None} <= arguments


def test_private_endpoints_disable_public_store_access() -> None:
    by_name = resources()
    modules = bicep("main.bicep")["modules"]
    for store in ("cosmos.cosmos", "redis.redis"):
        access = by_name[store]["config"]["properties"]["publicNetworkAccess"]["operator"]["operands"]
        assert access == {"condition": "private", "true_value": "Disabled", "false_value": "Enabled"}
    services = {name: modules[f"{name}Endpoint"]["config"] for name in ("cosmos", "redis")}
    targets = {name: service["config"]["params"]["service"] for name, service in services.items()}
    assert targets == {"cosmos": "Sql", "redis": "redisEnterprise"}


def test_cosmos_account_disables_key_auth_and_federates_kubernetes_pods() -> None:
    by_name = resources()
    assert by_name["cosmos.cosmos"]["config"]["properties"]["disableLocalAuth"] is True
    accounts = {by_name[f"main.{name}Federation"]["config"]["properties"]["subject"] for name in ("serve", "publish")}
    assert accounts == {"system:serviceaccount:hotplate:hotplate", "system:serviceaccount:hotplate:hotplate-publisher"}


UNITS = (
    "hotplate.service",
    *(f"hotplate-{name}.{kind}" for name in ("run@nightly", "backup") for kind in ("service", "timer")),
)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_the_units_and_their_sandbox(unit: str, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    for path in (TARGETS / "systemd").glob("hotplate*"):
        text = path.read_text().replace(ENTRYPOINT, str(Path(sys.executable).parent / "hotplate"))
        (tmp_path / path.name.replace("@.", "@nightly.")).write_text(text)
    ran = run_process(analyze, "verify", tmp_path / unit, code=None)
    assert (ran.returncode, ran.stderr.replace("Failed to prepare filename", "")) == (0, ""), ran.stderr
    if unit.endswith(".service"):
        command = [analyze, "security", "--offline=yes", "--no-pager", "--threshold=20", str(tmp_path / unit)]
        ran = run_process(*command, env=os.environ | {"COLUMNS": "200"})
