"""The manifests of k8s/: all of them build, every version of the API takes them, and no policy objects."""

import functools
import json
import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import cast

import kubernetes_validate
import pytest
import yaml

from hotplate.cli.run import read_job, read_pipeline
from tests.support import npm
from tests.support.kubernetes import K8S, Object, built
from tests.support.paths import ROOT
from tests.support.policies import POLICIES, Cluster, name_of, objections

pytestmark = pytest.mark.k8s

# The oldest whose users are still many, one in the middle, and the newest whose schemas are at hand.
VERSIONS = ("1.29", "1.33", kubernetes_validate.latest_version())
OVERLAYS = sorted(found.parent.name for found in K8S.glob("overlays/*/kustomization.yaml"))
JOBS = sorted(found.parent.name for found in K8S.glob("jobs/*/kustomization.yaml"))
COMPONENTS = sorted(found.parent.name for found in K8S.glob("components/*/kustomization.yaml"))
# The overlays whose store others may write to, each with all components and its jobs: what somebody may have at most.
WHOLE = {
    overlay: (
        [each for each in COMPONENTS if each not in {"store-password", "prune", "workload-identity", "version"}],
        ["bench", "publish", "spark"],
    )
    for overlay in ("dev", "redis", "redis-cluster")
}
WHOLE["cosmos"] = ([*WHOLE["redis"][0], "workload-identity"], ["bench", "publish-cosmos", "spark-cosmos"])
# Prometheus finds its targets by pods, or by Services.
MONITORING = {
    "dev": ["monitoring"],
    "redis": ["monitoring", "monitoring/service-monitor"],
    "redis-cluster": ["monitoring"],
    "cosmos": ["monitoring"],
}
# Which package of npm has the schemas of a group that Kubernetes itself does not know.
MODELS = {
    "gateway.networking.k8s.io": ("@kubernetes-models/gateway-api", "2.0.0"),
    "monitoring.coreos.com": ("@kubernetes-models/prometheus-operator", "6.0.0"),
}
TYPESCRIPT = "5.9.3"


@functools.cache
def _overlay(name: str) -> str:
    return json.dumps(built(f"overlays/{name}"))  # much quicker to read again than YAML


def overlay(name: str) -> list[Object]:
    """Return the objects of an overlay; each caller gets objects of its own."""
    return cast("list[Object]", json.loads(_overlay(name)))


@functools.cache
def _whole(overlay: str) -> str:
    components, jobs = WHOLE[overlay]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        above = os.path.relpath(K8S, folder)
        made = {
            "namespace": "hotplate",
            "resources": [f"{above}/overlays/{overlay}", *(f"{above}/jobs/{job}" for job in jobs)],
            "components": [
                *(f"{above}/{folder}" for folder in MONITORING[overlay]),
                *(f"{above}/components/{component}" for component in (*components, "version")),
            ],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(made))
        return json.dumps(built(str(folder)))


def whole(name: str) -> list[Object]:
    """Return the objects of an overlay with everything that goes with it, as somebody's own kustomization has it."""
    return cast("list[Object]", json.loads(_whole(name)))


def everything() -> list[Object]:
    """Return all objects of all overlays, components and jobs, each different one once."""
    parts = [*map(overlay, OVERLAYS), *map(whole, WHOLE)]
    distinct = {json.dumps(found, sort_keys=True): found for found in chain.from_iterable(parts)}
    return list(distinct.values())


def foreign(found: Object) -> bool:
    return found["apiVersion"].partition("/")[0] in MODELS


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_policy_objects_to_an_overlay(name: str) -> None:
    assert objections(overlay(name)) == []


@pytest.mark.parametrize("name", WHOLE)
def test_no_policy_objects_to_an_overlay_with_all_components_and_jobs(name: str) -> None:
    assert objections(whole(name)) == []


def test_every_component_and_job_is_part_of_what_is_checked() -> None:
    in_overlays = {"store-password", "prune", "version"}
    assert set(COMPONENTS) == in_overlays.union(*(components for components, _ in WHOLE.values()))
    assert set(JOBS) == set().union(*(jobs for _, jobs in WHOLE.values()))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_of_each_version_takes_every_object(version: str) -> None:
    for found in everything():
        if not foreign(found):
            try:
                kubernetes_validate.validate(found, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{name_of(found)}: {'.'.join(map(str, error.path))}: {error.message}")


@pytest.mark.parametrize("group", MODELS)
def test_objects_of_other_api_groups_match_their_published_schemas(
    group: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    found = [one for one in everything() if one["apiVersion"].startswith(f"{group}/")]
    kinds = sorted({one["kind"] for one in found})
    if not found:
        pytest.skip(f"nothing here is of {group}")
    try:
        models = npm.installed(pytestconfig, *MODELS[group]) / "node_modules"
        typescript = npm.installed(pytestconfig, "typescript", TYPESCRIPT) / "node_modules"
    except pytest.skip.Exception as reason:
        pytest.skip(f"unchecked, {', '.join(kinds)} of {group}: {reason.msg}")
    spoiled = json.loads(json.dumps(found[0]))
    spoiled["spec"]["bogus"] = 1
    refused = _refused([*found, spoiled], tmp_path, models / MODELS[group][0], typescript)
    assert set(refused) == {f"{len(found)}.mts"}, refused
    assert "bogus" in refused[f"{len(found)}.mts"]


def _refused(found: list[Object], folder: Path, models: Path, typescript: Path) -> dict[str, str]:
    """Return, by an object's number, what TypeScript, which knows fields, or a schema, which knows values, refuses."""
    for number, one in enumerate(found):
        kind, module, text = one["kind"], f"{models}/{one['apiVersion']}/{one['kind']}", json.dumps(one)
        assert Path(f"{module}.d.ts").exists(), f"{models.name} has no {kind} of {one['apiVersion']}"
        (folder / f"{number}.mts").write_text(
            f'import {{{kind}, type I{kind}}} from "{module}.js";\n'
            f"const made: I{kind} = {text};\n"
            f"new {kind}(made).validate();\n"
        )
    options = ["--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022"]
    names = [f"{number}.mts" for number in range(len(found))]
    typed = _run(["node", str(typescript / "typescript" / "bin" / "tsc"), *options, *names], folder)
    refused = {line.partition("(")[0]: line for line in typed.splitlines()}
    for name in names:
        if judged := _run(["node", name.replace(".mts", ".mjs")], folder):
            refused.setdefault(name, judged)
    return refused


def _run(command: list[str], folder: Path) -> str:
    """Return what a command that failed has printed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_images_and_labels_have_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for pod in Cluster(everything()).pods:
        assert pod.labels["app.kubernetes.io/version"] == version
        ours = [one["image"] for one in pod.containers if one["image"].startswith("hotplate")]
        assert all(image.endswith(f":{version}") for image in ours)


def test_the_pipeline_is_one_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_STORE", "redis://hotplate-redis:6379/0")
    job = read_job(read_pipeline(K8S / "components/pipeline/pipeline.toml"))
    assert job.store == "redis://hotplate-redis:6379/0"
    assert [gate.name for gate in job.publishing.bounds] == ["drop.ndcg", "coverage"]


def test_every_secret_that_a_pod_waits_for_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    volumes = [one for pod in Cluster(everything()).pods for one in pod.spec.get("volumes", []) if "secret" in one]
    assert {one["secret"]["secretName"] for one in volumes} <= set(re.findall(r"`(hotplate-[a-z]+)`", page))


def test_kubectl_targets_in_docs_exist_and_commands_set_the_namespace() -> None:
    known = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in everything()}
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text()
        named = re.findall(r"\b(?:deployment|service|cronjob|job)/hotplate(?:-[a-z]+)?\b", text)
        assert set(named) <= known, page.name
        elsewhere = r"kubectl (?:rollout|scale|get|delete|logs|port-forward|cp|create job).*"
        assert re.findall(elsewhere, text) == [], page.name


def test_alerts_link_to_the_runbook_that_a_setting_names(tmp_path: Path) -> None:
    above = os.path.relpath(K8S, tmp_path.resolve())
    setting = {
        "name": "hotplate-monitoring",
        "behavior": "merge",
        "literals": ["RUNBOOK_URL=https://ours.example/book"],
    }
    made = {
        "resources": [f"{above}/overlays/redis"],
        "components": [f"{above}/monitoring"],
        "configMapGenerator": [setting],
        "namespace": "hotplate",
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(made))
    (rules,) = [one for one in built(str(tmp_path)) if one["kind"] == "PrometheusRule"]
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    links = {alert["alert"]: alert["annotations"]["runbook_url"] for alert in alerts}
    assert links == {name: f"https://ours.example/book#{name.lower()}" for name in links}
    assert len(links) > 20


def policy_of(objects: list[Object], name: str) -> Object:
    """Return the network policy of that name."""
    (found,) = [one for one in objects if one["metadata"]["name"] == name and one["kind"] == "NetworkPolicy"]
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_names_are_looked_up_in_the_cluster_and_in_the_caches_of_its_nodes(name: str) -> None:
    found = policy_of(overlay(name), "dns")
    assert found["spec"]["podSelector"] == {}
    (way,) = found["spec"]["egress"]
    cluster, *nodes = way["to"]
    assert cluster["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    caches = ("169.254.20.10/32", "169.254.10.10/32", "169.254.10.11/32")  # of NodeLocal DNSCache, and of AKS LocalDNS
    assert [one["ipBlock"] for one in nodes] == [{"cidr": cache} for cache in caches]
    assert [(one["protocol"], one["port"]) for one in way["ports"]] == [("UDP", 53), ("TCP", 53)]


@pytest.mark.parametrize("name", WHOLE)
def test_who_serves_reaches_the_issuer_where_one_is_configured(name: str) -> None:
    good = Good(whole(name))
    assert good.settings["HOTPLATE_OIDC_ISSUER"].startswith("https://")
    assert good.settings["HOTPLATE_OIDC_AUDIENCE"]
    chosen = good["NetworkPolicy", "hotplate-to-issuer"]["spec"]["podSelector"]["matchLabels"]
    assert chosen.items() <= good.deployment["spec"]["template"]["metadata"]["labels"].items()
    assert "hotplate-to-issuer" not in {one["metadata"]["name"] for one in overlay(name)}


@pytest.mark.parametrize(
    ("name", "policy", "port"),
    [
        ("redis", "hotplate-to-store", 10000),
        ("redis", "hotplate-to-issuer", 443),
        ("cosmos", "hotplate-to-store", 443),
        ("edge", "hotplate-copy", 10000),
    ],
)
def test_egress_allows_its_port_over_ipv4_and_ipv6_except_node_metadata(name: str, policy: str, port: int) -> None:
    found = policy_of(whole(name) if policy == "hotplate-to-issuer" else overlay(name), policy)
    (way,) = found["spec"]["egress"]
    assert [one["port"] for one in way["ports"]] == [port]
    assert [one["ipBlock"] for one in way["to"]] == [
        {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]},
        {"cidr": "::/0"},
    ]


def test_a_kustomization_of_ones_own_as_the_docs_show_it_obeys_all_policies(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (shown,) = re.findall(r"```yaml\n(# shop/kustomization.yaml\n.*?)```", page, re.DOTALL)
    above = os.path.relpath(K8S, tmp_path.resolve())
    text = re.sub(r"https://\S+?//k8s/(\S+)\?ref=\S+", rf"{above}/\1", shown)
    (tmp_path / "kustomization.yaml").write_text(text)
    objects = built(str(tmp_path))
    assert objections(objects) == []
    assert [one["data"] for one in objects if "clicks.parquet" in str(one.get("data"))]
    assert {pod.containers[0]["image"].partition("/")[0] for pod in Cluster(objects).pods} == {"registry.shop.example"}


class Good:
    """A good deployment, to be spoiled: what is looked for most often, by name."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects
        self.deployment = self["Deployment", "hotplate"]
        self.pod: Object = self.deployment["spec"]["template"]["spec"]
        self.container: Object = self.pod["containers"][0]
        self.run: Object = self["CronJob", "hotplate-pipeline"]["spec"]["jobTemplate"]["spec"]
        self.settings: Object = next(
            one["data"] for one in objects if one["kind"] == "ConfigMap" and "HOTPLATE_HOST" in one["data"]
        )

    def __getitem__(self, wanted: tuple[str, str]) -> Object:
        return next(one for one in self.objects if (one["kind"], one["metadata"]["name"]) == wanted)

    def mount(self, name: str) -> Object:
        return next(one for one in self.container["volumeMounts"] if one["name"] == name)

    def volume(self, name: str) -> Object:
        return next(one for one in self.pod["volumes"] if one["name"] == name)

    def remove(self, kind: str, name: str) -> None:
        self.objects.remove(self[kind, name])


def add_secret(good: Good) -> None:
    good.objects.append({"kind": "Secret", "metadata": {"name": "any", "namespace": "hotplate"}})


SPOILED: list[tuple[str, Callable[[Good], object]]] = [
    ("confined", lambda good: good.pod["securityContext"].pop("runAsNonRoot")),
    ("confined", lambda good: good.pod["securityContext"].pop("seccompProfile")),
    ("confined", lambda good: good.pod.update(hostNetwork=True)),
    ("confined", lambda good: good.pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}})),
    ("confined", lambda good: good.pod["volumes"].append({"name": "any", "emptyDir": {}})),
    ("confined", lambda good: good.pod.pop("automountServiceAccountToken")),
    ("confined", lambda good: good.pod.pop("enableServiceLinks")),
    ("confined", lambda good: good.container["securityContext"].update(privileged=True)),
    ("confined", lambda good: good.container["ports"][0].update(hostPort=80)),
    ("confined", lambda good: good.container["volumeMounts"].remove(good.mount("tmp"))),
    ("confined", lambda good: good.pod.update(initContainers=[{"name": "root", "image": "busybox"}])),
    ("bounded", lambda good: good.container["resources"]["limits"].pop("memory")),
    ("bounded", lambda good: good.container.pop("livenessProbe")),
    ("bounded", lambda good: good.container["readinessProbe"]["httpGet"].update(port="https")),
    ("bounded", lambda good: good.container.update(image="registry.shop.example:5000/hotplate")),
    ("bounded", lambda good: good.run["template"]["metadata"]["labels"].pop("app.kubernetes.io/version")),
    ("behind_network_policies", lambda good: good.remove("NetworkPolicy", "default-deny")),
    ("behind_network_policies", lambda good: good["Namespace", "hotplate"]["metadata"].update(labels={})),
    ("behind_network_policies", lambda good: good.deployment["metadata"].update(namespace="default")),
    ("secrets_as_files", add_secret),
    ("secrets_as_files", lambda good: good.settings.update(HOTPLATE_REDIS_PASSWORD="pillow")),
    ("secrets_as_files", lambda good: good.settings.update(HOTPLATE_STORE="redis://serve:pillow@cache/0")),
    ("secrets_as_files", lambda good: good.container.update(env=[{"name": "API_TOKEN", "value": "pillow"}])),
    ("secrets_as_files", lambda good: good.container["envFrom"].append({"secretRef": {"name": "any"}})),
    ("secrets_as_files", lambda good: good.volume("keys")["secret"].pop("defaultMode")),
    ("identities", lambda good: good["ServiceAccount", "hotplate"].update(automountServiceAccountToken=True)),
    ("identities", lambda good: good["ServiceAccount", "hotplate"]["metadata"].pop("annotations")),
    ("connected", lambda good: good.container["ports"][0].pop("name")),
    ("connected", lambda good: good["Service", "hotplate"]["spec"]["selector"].update(any="other")),
    ("connected", lambda good: good["NetworkPolicy", "hotplate"]["spec"]["podSelector"]["matchLabels"].update(a="b")),
    ("connected", lambda good: good.deployment["spec"]["selector"]["matchLabels"].update(any="other")),
    ("connected", lambda good: good.deployment["metadata"].update(name="other")),
    (
        "connected",
        lambda good: good["PodDisruptionBudget", "hotplate"]["spec"]["selector"].update(matchLabels={"a": "b"}),
    ),
    ("open_doors", lambda good: good["Ingress", "hotplate"]["spec"].pop("tls")),
    ("open_doors", lambda good: good["Service", "hotplate"]["metadata"].update(name="other")),
    ("open_doors", lambda good: good["Gateway", "hotplate"]["spec"]["listeners"].pop(0)),
    ("open_doors", lambda good: good["HTTPRoute", "hotplate"]["spec"]["rules"][0]["backendRefs"][0].update(port=1)),
    ("existing_references", lambda good: good.container["envFrom"][0]["configMapRef"].update(name="other")),
    ("existing_references", lambda good: good.remove("PersistentVolumeClaim", "hotplate-work")),
    ("careful_changes", lambda good: good.settings.update(HOTPLATE_DRAIN="20")),
    ("careful_changes", lambda good: (good.container.pop("lifecycle"), good.settings.update(HOTPLATE_DRAIN_DELAY="0"))),
    ("careful_changes", lambda good: good.deployment["spec"].update(replicas=2)),
    ("careful_changes", lambda good: good["HorizontalPodAutoscaler", "hotplate"]["spec"].update(minReplicas=1)),
    ("careful_changes", lambda good: good.deployment["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1)),
    ("careful_changes", lambda good: good.deployment["spec"].update(strategy={"type": "Recreate"})),
    ("bounded_jobs", lambda good: good["CronJob", "hotplate-prune"]["spec"].update(concurrencyPolicy="Allow")),
    ("bounded_jobs", lambda good: good.run.pop("activeDeadlineSeconds")),
    ("bounded_jobs", lambda good: good.run["podFailurePolicy"]["rules"].pop(0)),
    ("accepted_settings", lambda good: good.settings.update(HOTPLATE_WORKER="1")),
    ("accepted_settings", lambda good: good.settings.update(HOTPLATE_WORKERS="none")),
    ("accepted_settings", lambda good: good.settings.update(HOTPLATE_STORE="postgres://cache/0")),
    ("accepted_settings", lambda good: good.container.update(args=["serve", "--verbose"])),
    ("accepted_settings", lambda good: good.settings.update(HOTPLATE_DENY_LIST="/etc/hotplate/denied.txt")),
    ("accepted_settings", lambda good: good.mount("keys").update(subPath="keys.json")),
]


@pytest.mark.parametrize(
    ("policy", "spoil"), SPOILED, ids=[f"{number}-{name}" for number, (name, _) in enumerate(SPOILED)]
)
def test_a_policy_objects_to_what_breaks_it(policy: str, spoil: Callable[[Good], object]) -> None:
    good = Good(whole("cosmos"))
    spoil(good)
    assert objections(good.objects, policy) != []


def test_every_policy_was_seen_to_object() -> None:
    assert {policy for policy, _ in SPOILED} == set(POLICIES)
