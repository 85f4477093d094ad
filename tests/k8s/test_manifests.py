"""The manifests of k8s/: all of them build, every version of the API takes them, and no policy objects."""

import functools
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml

from hotplate.cli.run_work import read_job, read_pipeline
from hotplate.offline.gates.bounds import bounds_of
from tests.support.command import succeeded
from tests.support.kubernetes import K8S, VERSION, Object, built
from tests.support.paths import ROOT
from tests.support.policies import POLICIES, Cluster, name_of, objections

pytestmark = pytest.mark.k8s

# The oldest version in wide use, one in the middle, and the newest with available schemas.
VERSIONS = ("1.29", "1.33", kubernetes_validate.latest_version())
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
JOBS = sorted(path.parent.name for path in K8S.glob("jobs/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in K8S.glob("components/*/kustomization.yaml"))
# Overlays with a store that jobs can write to, each with all components and its jobs.
WHOLE = {
    overlay: (
        [
            component
            for component in COMPONENTS
            if component not in {"store-password", "prune", "workload-identity", "version"}
        ],
        ["bench", "publish", "spark"],
    )
    for overlay in ("dev", "redis", "redis-cluster")
}
WHOLE["cosmos"] = ([*WHOLE["redis"][0], "workload-identity"], ["bench", "publish", "spark"])
# Prometheus finds its targets by pods, or by Services.
MONITORING = {
    "dev": ["monitoring"],
    "redis": ["monitoring", "monitoring/service-monitor"],
    "redis-cluster": ["monitoring"],
    "cosmos": ["monitoring"],
}
# Groups that Kubernetes itself does not know.
FOREIGN = {"gateway.networking.k8s.io", "monitoring.coreos.com"}


@functools.cache
def _overlay(name: str) -> str:
    return json.dumps(built(f"overlays/{name}"))  # much quicker to read again than YAML


def overlay(name: str) -> list[Object]:
    """Return the objects of an overlay; each caller gets a copy."""
    return cast("list[Object]", json.loads(_overlay(name)))


@functools.cache
def _whole(overlay: str) -> str:
    components, jobs = WHOLE[overlay]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        above = os.path.relpath(K8S, folder)
        kustomization = {
            "namespace": "hotplate",
            "resources": [f"{above}/overlays/{overlay}", *(f"{above}/jobs/{job}" for job in jobs)],
            "components": [
                *(f"{above}/{folder}" for folder in MONITORING[overlay]),
                *(f"{above}/components/{component}" for component in (*components, "version")),
            ],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return json.dumps(built(str(folder)))


def whole(name: str) -> list[Object]:
    """Return the objects of an overlay with everything that goes with it, as somebody's own kustomization has it."""
    return cast("list[Object]", json.loads(_whole(name)))


def everything() -> list[Object]:
    """Return all objects of all overlays, components and jobs, each different one once."""
    parts = [*map(overlay, OVERLAYS), *map(whole, WHOLE)]
    distinct = {json.dumps(resource, sort_keys=True): resource for resource in chain.from_iterable(parts)}
    return list(distinct.values())


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_passes_all_policies(name: str) -> None:
    assert objections(overlay(name)) == []


@pytest.mark.parametrize("name", WHOLE)
def test_overlays_with_all_components_and_jobs_pass_all_policies(name: str) -> None:
    assert objections(whole(name)) == []


def test_every_component_and_job_is_checked() -> None:
    in_overlays = {"store-password", "prune", "version"}
    assert set(COMPONENTS) == in_overlays.union(*(components for components, _ in WHOLE.values()))
    assert set(JOBS) == set().union(*(jobs for _, jobs in WHOLE.values()))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_for_each_kubernetes_version(version: str) -> None:
    for resource in everything():
        if resource["apiVersion"].partition("/")[0] not in FOREIGN:
            try:
                kubernetes_validate.validate(resource, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{name_of(resource)}: {'.'.join(map(str, error.path))}: {error.message}")


def test_images_and_labels_have_the_version_of_the_package() -> None:
    for pod in Cluster(everything()).pods:
        assert pod.labels["app.kubernetes.io/version"] == VERSION
        ours = [container["image"] for container in pod.containers if container["image"].startswith("hotplate")]
        assert all(image.endswith(f":{VERSION}") for image in ours)


def test_pipeline_of_the_job_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTPLATE_STORE", "redis://hotplate-redis:6379/0")
    job = read_job(read_pipeline(K8S / "components/pipeline/pipeline.toml"))
    assert job.store == "redis://hotplate-redis:6379/0"
    assert [gate.name for gate in bounds_of(job.publishing)] == ["drop.ndcg", "coverage"]


def test_every_required_secret_is_documented() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    volumes = [
        volume for pod in Cluster(everything()).pods for volume in pod.spec.get("volumes", []) if "secret" in volume
    ]
    assert {volume["secret"]["secretName"] for volume in volumes} <= set(re.findall(r"`(hotplate-[a-z]+)`", page))


def test_kubectl_targets_in_docs_exist_and_commands_set_the_namespace() -> None:
    known = {f"{resource['kind'].lower()}/{resource['metadata']['name']}" for resource in everything()}
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
    kustomization = {
        "resources": [f"{above}/overlays/redis"],
        "components": [f"{above}/monitoring"],
        "configMapGenerator": [setting],
        "namespace": "hotplate",
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (rules,) = [resource for resource in built(str(tmp_path)) if resource["kind"] == "PrometheusRule"]
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    links = {alert["alert"]: alert["annotations"]["runbook_url"] for alert in alerts}
    assert links == {name: f"https://ours.example/book#{name.lower()}" for name in links}
    assert len(links) > 20


@pytest.mark.parametrize("name", OVERLAYS)
def test_probation_is_on_where_the_service_may_write_to_its_store(name: str) -> None:
    cluster = Cluster(overlay(name))
    (service,) = [pod for pod in cluster.pods if pod.labels["app.kubernetes.io/component"] == "serve"]
    (container,) = service.containers
    settings = cluster.environment(container)
    publisher = cluster.named("ConfigMap", "hotplate-publisher")
    assert publisher
    is_publisher = settings["HOTPLATE_STORE"] == publisher["data"]["HOTPLATE_STORE"]
    folders = [mount for mount in container["volumeMounts"] if settings["HOTPLATE_STORE"].endswith(mount["mountPath"])]
    may_write = is_publisher and not any(folder.get("readOnly") for folder in folders)
    assert ("HOTPLATE_PROBATION" in settings) == may_write


def policy_of(objects: list[Object], name: str) -> Object:
    """Return the network policy of that name."""
    (policy,) = [
        resource for resource in objects if resource["metadata"]["name"] == name and resource["kind"] == "NetworkPolicy"
    ]
    return policy


@pytest.mark.parametrize("name", OVERLAYS)
def test_dns_egress_allows_cluster_and_node_caches(name: str) -> None:
    policy = policy_of(overlay(name), "dns")
    assert policy["spec"]["podSelector"] == {}
    (way,) = policy["spec"]["egress"]
    cluster, *nodes = way["to"]
    assert cluster["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    caches = ("169.254.20.10/32", "169.254.10.10/32", "169.254.10.11/32")  # of NodeLocal DNSCache, and of AKS LocalDNS
    assert [peer["ipBlock"] for peer in nodes] == [{"cidr": cache} for cache in caches]
    assert [(peer["protocol"], peer["port"]) for peer in way["ports"]] == [("UDP", 53), ("TCP", 53)]


@pytest.mark.parametrize("name", WHOLE)
def test_service_reaches_the_configured_issuer(name: str) -> None:
    good = Good(whole(name))
    assert good.settings["HOTPLATE_OIDC_ISSUER"].startswith("https://")
    assert good.settings["HOTPLATE_OIDC_AUDIENCE"]
    policy = good["NetworkPolicy", "hotplate"]["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    assert chosen.items() <= good.deployment["spec"]["template"]["metadata"]["labels"].items()
    assert ports_of(policy) == {443, 4318}  # the issuer, and the collector of the component `telemetry`
    assert ports_of(policy_of(overlay(name), "hotplate")["spec"]) == set()


def ports_of(policy: Object) -> set[int]:
    """Return the ports that a policy lets pods reach."""
    return {port["port"] for way in policy["egress"] for port in way["ports"]}


@pytest.mark.parametrize(
    ("name", "policy", "port"),
    [
        ("redis", "hotplate-to-store", 10000),
        ("redis", "hotplate", 443),
        ("cosmos", "hotplate-to-store", 443),
        ("edge", "hotplate-copy", 10000),
    ],
)
def test_egress_allows_its_port_over_ipv4_and_ipv6_except_node_metadata(name: str, policy: str, port: int) -> None:
    built_policy = policy_of(whole(name) if policy == "hotplate" else overlay(name), policy)
    (way,) = [way for way in built_policy["spec"]["egress"] if "ipBlock" in way["to"][0]]
    assert [peer["port"] for peer in way["ports"]] == [port]
    assert [peer["ipBlock"] for peer in way["to"]] == [
        {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]},
        {"cidr": "::/0"},
    ]


def test_documented_kustomization_passes_all_policies(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (shown,) = re.findall(r"```yaml\n(# shop/kustomization.yaml\n.*?)```", page, re.DOTALL)
    above = os.path.relpath(K8S, tmp_path.resolve())
    text = re.sub(r"https://\S+?//k8s/(\S+)\?ref=\S+", rf"{above}/\1", shown)
    (tmp_path / "kustomization.yaml").write_text(text)
    objects = built(str(tmp_path))
    assert objections(objects) == []
    assert [resource["data"] for resource in objects if "clicks.parquet" in str(resource.get("data"))]
    assert {pod.containers[0]["image"].partition("/")[0] for pod in Cluster(objects).pods} == {"registry.shop.example"}


def test_ingress_hashes_by_user() -> None:
    ingress = Good(whole("redis"))["Ingress", "hotplate"]
    key = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/upstream-hash-by"]
    assert f"# hash {key} consistent;" in (ROOT / "docs/examples/nginx.conf").read_text()


def job_of(schedule: Object) -> Object:
    job: Object = schedule["spec"]["jobTemplate"]["spec"]
    return job


class Good:
    """A good deployment for tests to spoil, with its most used parts by name."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects
        self.deployment = self["Deployment", "hotplate"]
        self.pod: Object = self.deployment["spec"]["template"]["spec"]
        self.container: Object = self.pod["containers"][0]
        self.run: Object = job_of(self["CronJob", "hotplate-pipeline"])
        self.settings: Object = next(
            resource["data"]
            for resource in objects
            if resource["kind"] == "ConfigMap" and "HOTPLATE_HOST" in resource["data"]
        )

    def __getitem__(self, wanted: tuple[str, str]) -> Object:
        return next(resource for resource in self.objects if (resource["kind"], resource["metadata"]["name"]) == wanted)

    def mount(self, name: str) -> Object:
        return next(mount for mount in self.container["volumeMounts"] if mount["name"] == name)

    def volume(self, name: str) -> Object:
        return next(volume for volume in self.pod["volumes"] if volume["name"] == name)

    def remove(self, kind: str, name: str) -> None:
        self.objects.remove(self[kind, name])


SPOILED: list[tuple[str, Callable[[Good], object]]] = [
    ("confined", lambda good: good.pod["securityContext"].pop("runAsNonRoot")),
    ("confined", lambda good: good.pod["volumes"].append({"name": "any", "emptyDir": {}})),
    ("bounded", lambda good: good.container["resources"]["limits"].pop("memory")),
    ("bounded", lambda good: good.container.pop("livenessProbe")),
    ("behind_network_policies", lambda good: good.remove("NetworkPolicy", "default-deny")),
    ("secrets_as_files", lambda good: good.settings.update(HOTPLATE_REDIS_PASSWORD="pillow")),
    ("secrets_as_files", lambda good: good.settings.update(HOTPLATE_STORE="redis://serve:pillow@cache/0")),
    ("secrets_as_files", lambda good: good.volume("keys")["secret"].pop("defaultMode")),
    ("connected", lambda good: good["Service", "hotplate"]["spec"]["selector"].update(any="other")),
    ("existing_references", lambda good: good.container["envFrom"][0]["configMapRef"].update(name="other")),
    ("careful_changes", lambda good: good.settings.update(HOTPLATE_DRAIN="20")),
    ("careful_changes", lambda good: good.container["livenessProbe"].update(failureThreshold=3)),
    ("careful_changes", lambda good: good.deployment["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1)),
    ("bounded_jobs", lambda good: good["CronJob", "hotplate-prune"]["spec"].update(concurrencyPolicy="Allow")),
    ("bounded_jobs", lambda good: good.run["podFailurePolicy"]["rules"].pop(0)),
    ("bounded_jobs", lambda good: job_of(good["CronJob", "hotplate-prune"])["podFailurePolicy"]["rules"].pop(0)),
    ("accepted_settings", lambda good: good.settings.update(HOTPLATE_WORKER="1")),
    ("accepted_settings", lambda good: good.settings.update(HOTPLATE_STORE="postgres://cache/0")),
    ("accepted_settings", lambda good: good.mount("keys").update(subPath="keys.json")),
]


@pytest.mark.parametrize(
    ("policy", "spoil"), SPOILED, ids=[f"{number}-{name}" for number, (name, _) in enumerate(SPOILED)]
)
def test_policy_rejects_violations(policy: str, spoil: Callable[[Good], object]) -> None:
    good = Good(whole("cosmos"))
    spoil(good)
    assert objections(good.objects, policy) != []


def test_every_policy_has_a_violation_test() -> None:
    assert {policy for policy, _ in SPOILED} == set(POLICIES)


GUIDE = (ROOT / "docs" / "sizing.md").read_text().partition("## The autoscaler\n")[2]


SHIPPED: dict[str, Any] = yaml.safe_load((K8S / "base" / "autoscaler.yaml").read_text())["spec"]


def autoscaler(folder: str) -> dict[str, Any]:
    (spec,) = [resource["spec"] for resource in built(folder) if resource["kind"] == "HorizontalPodAutoscaler"]
    return dict(spec)


def test_autoscaler_has_the_numbers_of_the_guides_plan() -> None:
    command = re.search(r"^    hotplate (plan (?:.*\\\n)*.*)$", GUIDE, re.MULTILINE)
    assert command
    done = succeeded(*shlex.split(command[1].replace("\\\n", "")), "--json")
    facts = json.loads(done)
    planned = {row["name"]: row["value"] for row in facts["inputs"] + facts["figures"]}
    (cpu,) = (metric["resource"]["target"] for metric in SHIPPED["metrics"])
    assert autoscaler("overlays/cosmos")["maxReplicas"] == planned["cosmos_hpa_most_pods"]
    assert (SHIPPED["minReplicas"], SHIPPED["maxReplicas"]) == (planned["min_pods"], planned["redis_hpa_most_pods"])
    assert cpu["averageUtilization"] == 100 * planned["hpa_utilisation"]
    (with_requests,) = [
        resource["spec"] for resource in whole("redis") if resource["kind"] == "HorizontalPodAutoscaler"
    ]
    of_cpu, of_requests = with_requests["metrics"]
    assert [of_cpu] == SHIPPED["metrics"]
    assert float(of_requests["pods"]["target"]["averageValue"]) == planned["redis_hpa_pod_rps"]


def test_every_overlay_scales_the_service_by_them() -> None:
    assert SHIPPED["scaleTargetRef"]["name"] == "hotplate"
    assert SHIPPED == autoscaler("base") == autoscaler("overlays/redis")
    of_cosmos = autoscaler("overlays/cosmos")
    assert of_cosmos == {**SHIPPED, "maxReplicas": of_cosmos["maxReplicas"]}
