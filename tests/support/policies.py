"""
What every manifest has to be: each policy looks at the objects of one deployment and yields what it objects to.

`POLICIES` names them all. A policy is a function of a `Cluster`, so that a test can spoil a good one and see it object.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast
from unittest.mock import patch

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from hotplate.cli.main import command
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreMisused
from tests.support.kubernetes import Object

VERBS = cast("TyperGroup", typer.main.get_command(command()))  # of an app of several verbs it makes a group
# Variables that no option has: secrets, which stores read, each also as a file.
SECRETS = {"HOTPLATE_REDIS_PASSWORD", "HOTPLATE_COSMOS_KEY"}
# Who runs until it is stopped; whatever else has pods is a job.
SERVICES = ("Deployment", "StatefulSet", "DaemonSet")
WEBHOOK_LABEL, CLIENT_ID = "azure.workload.identity/use", "azure.workload.identity/client-id"


@dataclass(frozen=True, slots=True)
class Pod:
    """The pods of one workload, as its template says them."""

    owner: Object
    labels: dict[str, str]
    spec: Object

    def __str__(self) -> str:
        """Name the workload."""
        return name_of(self.owner)

    @property
    def containers(self) -> list[Object]:
        """All containers, those that come before the others too."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> set[str | int]:
        """What a port can be called: its name or its number."""
        ports = [port for container in self.containers for port in container.get("ports", [])]
        return {port[key] for port in ports for key in ("name", "containerPort") if key in port}


class Cluster:
    """The objects of one deployment, found by what they are."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, *kinds: str) -> list[Object]:
        """Return the objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        """Return one object, or None."""
        return next((found for found in self.of(kind) if found["metadata"]["name"] == name), None)

    @cached_property
    def pods(self) -> list[Pod]:
        """What runs, one entry a workload."""
        templates = [(one, one["spec"]["template"]) for one in self.of(*SERVICES, "Job")]
        templates += [(one, one["spec"]["jobTemplate"]["spec"]["template"]) for one in self.of("CronJob")]
        return [Pod(owner, made["metadata"]["labels"], made["spec"]) for owner, made in templates]

    def selected(self, selector: Object) -> list[Pod]:
        """Return the pods that a selector of labels, as policies and budgets have it, finds."""
        return [pod for pod in self.pods if _matches(selector, pod.labels)]

    def environment(self, container: Object) -> dict[str, str]:
        """Return what a container finds in its environment, as far as the manifests say it."""
        found = dict[str, str]()
        for source in container.get("envFrom", []):
            settings = self.named("ConfigMap", source.get("configMapRef", {}).get("name", ""))
            found |= settings["data"] if settings else {}
        return found | {one["name"]: one.get("value", "") for one in container.get("env", [])}

    @property
    def containers(self) -> Iterator[tuple[str, Pod, Object]]:
        """Every container, with its pod and with both their names."""
        for pod in self.pods:
            for container in pod.containers:
                yield f"{pod}, {container['name']}", pod, container


Policy = Callable[[Cluster], Iterator[str]]


def name_of(found: Object) -> str:
    """Name an object, as kubectl does."""
    return f"{found['kind']}/{found['metadata']['name']}"


def objections(objects: list[Object]) -> list[str]:
    """Return what all policies object to."""
    cluster = Cluster(objects)
    return [f"{name}: {what}" for name, policy in POLICIES.items() for what in policy(cluster)]


def unprivileged_pods(cluster: Cluster) -> Iterator[str]:
    """No root and nothing of the host: what pod security `restricted` asks of pods, and a user by number."""
    for pod in cluster.pods:
        spec, confined = pod.spec, pod.spec.get("securityContext", {})
        if not confined.get("runAsNonRoot") or not confined.get("runAsUser") or not confined.get("runAsGroup"):
            yield f"{pod} may run as root"
        if confined.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod} may use every system call"
        if any(spec.get(host) for host in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod} shares a namespace of its host"
        if any("hostPath" in volume for volume in spec.get("volumes", [])):
            yield f"{pod} mounts a folder of its host"


def unprivileged_containers(cluster: Cluster) -> Iterator[str]:
    """No privilege: what pod security `restricted` asks of containers, none of which leaves what its pod says."""
    for name, _, container in cluster.containers:
        confined = container.get("securityContext", {})
        if confined.get("allowPrivilegeEscalation") is not False or confined.get("privileged"):
            yield f"{name} may gain privileges"
        if confined.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} has capabilities"
        if {"runAsUser", "runAsNonRoot", "seccompProfile"} & set(confined):
            yield f"{name} has another user or profile than its pod"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name} takes a port of its host"


def read_only_root(cluster: Cluster) -> Iterator[str]:
    """The image is never written to; what is temporary goes to a volume of limited size."""
    for name, pod, container in cluster.containers:
        if not container.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield f"{name} may write to its image"
        if "/tmp" not in {mount["mountPath"] for mount in container.get("volumeMounts", [])}:
            yield f"{name} has no place for what is temporary"
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{name}: the volume {volume['name']} may fill the disk of its node"


def bounded(cluster: Cluster) -> Iterator[str]:
    """Requests and limits of CPU and memory."""
    for name, _, container in cluster.containers:
        for bound in ("requests", "limits"):
            if {"cpu", "memory"} - set(container.get("resources", {}).get(bound, {})):
                yield f"{name} has no {bound} of CPU and memory"


def probed(cluster: Cluster) -> Iterator[str]:
    """A service has all three probes, and they go to ports that it has."""
    for name, pod, container in cluster.containers:
        if pod.owner["kind"] not in SERVICES:
            continue
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe not in container:
                yield f"{name} has no {probe}"
            elif container[probe].get("httpGet", {}).get("port", "exec") not in pod.ports | {"exec"}:
                yield f"{name}: its {probe} goes to a port that it does not have"


def pinned_images(cluster: Cluster) -> Iterator[str]:
    """An image has a tag or a digest, and the tag is a version."""
    for name, _, container in cluster.containers:
        if not re.search(r"(:v?\d[\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]):
            yield f"{name}: {container['image']} may be another image tomorrow"


def behind_network_policies(cluster: Cluster) -> Iterator[str]:
    """Whatever a pod may send or receive, some policy allowed."""
    for pod in cluster.pods:
        covered = {
            direction
            for policy in cluster.of("NetworkPolicy")
            if pod in cluster.selected(policy["spec"]["podSelector"])
            for direction in policy["spec"]["policyTypes"]
        }
        if covered != {"Ingress", "Egress"}:
            yield f"{pod}: no network policy covers what it sends and receives"


def secrets_as_files(cluster: Cluster) -> Iterator[str]:
    """No secret is in a manifest or in an environment; files of secrets are for their user only."""
    for secret in cluster.of("Secret"):
        yield f"{name_of(secret)} is part of the manifests"
    texts = [(name_of(one), key, text) for one in cluster.of("ConfigMap") for key, text in one.get("data", {}).items()]
    for name, _, container in cluster.containers:
        texts += [(name, one["name"], one.get("value", "")) for one in container.get("env", [])]
        refers = [one.get("valueFrom", {}).get("secretKeyRef") for one in container.get("env", [])]
        if any(refers) or any("secretRef" in one for one in container.get("envFrom", [])):
            yield f"{name} has a secret in its environment"
    for name, key, text in texts:
        is_secret = re.search(r"PASSWORD|SECRET|TOKEN|_KEYS?$", key) and not re.match(r"/|prod$", text)
        if is_secret or re.search(r"://[^/\s@]*:[^/\s@]+@|-----BEGIN|requirepass|AccountKey=", text):
            yield f"{name} has a secret in {key}"
    for pod in cluster.pods:
        modes = [one["secret"].get("defaultMode") for one in pod.spec.get("volumes", []) if "secret" in one]
        if any(mode != 0o440 for mode in modes):
            yield f"{pod}: everybody in the container may read a secret"


def without_tokens(cluster: Cluster) -> Iterator[str]:
    """Nobody has a token of the Kubernetes API, and one of an identity only who is given that identity."""
    for account in cluster.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{name_of(account)} gives its token to its pods"
    for pod in cluster.pods:
        account = cluster.named("ServiceAccount", pod.spec.get("serviceAccountName", "")) or {"metadata": {}}
        identity = CLIENT_ID in account["metadata"].get("annotations", {})
        works = pod.labels.get("app.kubernetes.io/component") not in {"bench", "spark-master"}
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod} mounts a token of the Kubernetes API"
        if any("serviceAccountToken" in str(one.get("projected")) for one in pod.spec.get("volumes", [])):
            yield f"{pod} mounts a token of its own making"
        if (WEBHOOK_LABEL in pod.labels) != (identity and works):
            yield f"{pod} and its service account do not agree on whether it has an identity"


def without_service_links(cluster: Cluster) -> Iterator[str]:
    """The Service `hotplate` must not set HOTPLATE_PORT."""
    for pod in cluster.pods:
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod} finds the addresses of Services in its settings"


def named_ports(cluster: Cluster) -> Iterator[str]:
    """Each port has a name, and what refers to one does so by a name that is there."""
    for name, _, container in cluster.containers:
        if any("name" not in port for port in container.get("ports", [])):
            yield f"{name} has a port without a name"
    for service in cluster.of("Service"):
        found = cluster.selected({"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            if not found or any(port.get("targetPort") not in pod.ports for pod in found) or "name" not in port:
                yield f"{name_of(service)} leads nowhere"
    for policy in cluster.of("NetworkPolicy"):
        found = cluster.selected(policy["spec"]["podSelector"])
        ports = [port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]]
        if not found or any(port not in pod.ports for pod in found for port in ports):
            yield f"{name_of(policy)} is for pods or ports that do not exist"


def matching_selectors(cluster: Cluster) -> Iterator[str]:
    """Selectors find pods, and autoscalers and budgets what they name."""
    for workload in cluster.of(*SERVICES):
        if not _matches(workload["spec"]["selector"], workload["spec"]["template"]["metadata"]["labels"]):
            yield f"{name_of(workload)} does not select its own pods"
    for budget in cluster.of("PodDisruptionBudget"):
        if not cluster.selected(budget["spec"]["selector"]):
            yield f"{name_of(budget)} selects nothing"
    for scaler in cluster.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if not cluster.named(target["kind"], target["name"]):
            yield f"{name_of(scaler)} scales nothing"


def open_doors(cluster: Cluster) -> Iterator[str]:
    """What comes by Ingress or Gateway is served, and with TLS."""
    for ingress in cluster.of("Ingress"):
        hosts = {host for tls in ingress["spec"].get("tls", []) for host in tls["hosts"]}
        for rule in ingress["spec"]["rules"]:
            if rule["host"] not in hosts:
                yield f"{name_of(ingress)} has no TLS for {rule['host']}"
            for path in rule["http"]["paths"]:
                to = path["backend"]["service"]
                yield from _unserved(cluster, name_of(ingress), to["name"], to["port"].get("name"))
    for route in cluster.of("HTTPRoute"):
        for parent in route["spec"]["parentRefs"]:
            gateway = cluster.named("Gateway", parent["name"])
            if not gateway or parent["sectionName"] not in {one["name"] for one in gateway["spec"]["listeners"]}:
                yield f"{name_of(route)} belongs to no listener"
        for to in (to for rule in route["spec"]["rules"] for to in rule.get("backendRefs", [])):
            yield from _unserved(cluster, name_of(route), to["name"], to["port"])


def existing_references(cluster: Cluster) -> Iterator[str]:
    """What a pod takes from other objects is there; secrets are made by their owner."""
    for pod in cluster.pods:
        wanted = [("ServiceAccount", pod.spec["serviceAccountName"])] if "serviceAccountName" in pod.spec else []
        wanted += [("ConfigMap", one["configMap"]["name"]) for one in pod.spec.get("volumes", []) if "configMap" in one]
        claims = [one["persistentVolumeClaim"] for one in pod.spec.get("volumes", []) if "persistentVolumeClaim" in one]
        wanted += [("PersistentVolumeClaim", claim["claimName"]) for claim in claims]
        for container in pod.containers:
            sources = [one["configMapRef"] for one in container.get("envFrom", []) if "configMapRef" in one]
            wanted += [("ConfigMap", one["name"]) for one in sources]
        for kind, name in wanted:
            if not cluster.named(kind, name):
                yield f"{pod} wants {kind}/{name}, which does not exist"


def graceful_stops(cluster: Cluster) -> Iterator[str]:
    """What a service may take to stop is less than what it is given."""
    for name, pod, container in cluster.containers:
        if container.get("args") != ["serve"]:
            continue
        environment = cluster.environment(container)
        waits = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])[-1]
        drains = [float(environment.get(key, "inf")) for key in ("HOTPLATE_DRAIN_DELAY", "HOTPLATE_DRAIN")]
        if float(waits) + sum(drains) >= pod.spec.get("terminationGracePeriodSeconds", 30):
            yield f"{name} may be killed before it has drained"
        if float(waits) + drains[0] < 2:
            yield f"{name} closes its port before the cluster can know"


def careful_changes(cluster: Cluster) -> Iterator[str]:
    """A roll-out takes no pod away before its successor is ready; replicas have one owner, and 2 are the least."""
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one["spec"] for one in cluster.of("HorizontalPodAutoscaler")}
    for workload in cluster.of("Deployment"):
        spec, scaler = workload["spec"], scaled.get(workload["metadata"]["name"])
        if ("replicas" in spec) == (scaler is not None):
            yield f"{name_of(workload)}: an apply and an autoscaler both set its replicas, or neither does"
        if scaler and scaler["minReplicas"] < 2:
            yield f"{name_of(workload)} may be down to one pod"
        strategy = spec["strategy"]
        if strategy["type"] != "Recreate" and strategy["rollingUpdate"]["maxUnavailable"] != 0:
            yield f"{name_of(workload)} loses pods while it is rolled out"
        if strategy["type"] == "Recreate" and spec.get("replicas") != 1:
            yield f"{name_of(workload)} is away while it is rolled out"


def patient_jobs(cluster: Cluster) -> Iterator[str]:
    """A scheduled job runs once at a time and ends some day; one that can be refused by a gate is not repeated then."""
    for job in cluster.of("CronJob"):
        if job["spec"]["concurrencyPolicy"] != "Forbid" or "startingDeadlineSeconds" not in job["spec"]:
            yield f"{name_of(job)} may run twice at once, or very late"
    for pod in cluster.pods:
        if pod.owner["kind"] in SERVICES:
            continue
        spec = pod.owner["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if {"backoffLimit", "activeDeadlineSeconds"} - set(spec):
            yield f"{pod} may run for ever"
        verbs = {container.get("args", [""])[0] for container in pod.containers}
        codes = [rule.get("onExitCodes", {}) for rule in spec.get("podFailurePolicy", {}).get("rules", [])]
        if verbs & {"run", "publish"} and not any({2, 3} <= set(one.get("values", ())) for one in codes):
            yield f"{pod} repeats what a gate has refused"


def known_settings(cluster: Cluster) -> Iterator[str]:
    """Each HOTPLATE_* is an option of some verb, or a secret, and that only as a file."""
    known = set(_variables(VERBS)) | {f"{secret}_FILE" for secret in SECRETS}
    for name, _, container in cluster.containers:
        for key in cluster.environment(container):
            if key.startswith("HOTPLATE_") and key not in known:
                yield f"{name}: no verb has {key}"


def accepted_settings(cluster: Cluster) -> Iterator[str]:
    """The parser of the verb takes what a container starts it with; a store is one that can be opened."""
    for name, _, container in cluster.containers:
        script = next((line for line in container.get("command", []) if "bin/hotplate " in line), None)
        if script is None and ("command" in container or not container["image"].startswith("hotplate")):
            continue
        words = script.partition("bin/hotplate ")[2].split() if script else container["args"]
        # What a secret's file holds is not here to be read.
        given = {key: text for key, text in cluster.environment(container).items() if not key.endswith("_FILE")}
        with patch.dict(os.environ, given):
            try:
                _parse(VERBS, words)
                for url in (url for key in ("STORE", "FROM", "TO") for url in given.get(f"HOTPLATE_{key}", "").split()):
                    connect(url)
            except (TyperException, StoreMisused) as error:
                yield f"{name} would not start: {error}"


def followed_files(cluster: Cluster) -> Iterator[str]:
    """A file that a setting names is in a volume, mounted as a folder: what `subPath` mounts never changes."""
    for name, _, container in cluster.containers:
        mounts = container.get("volumeMounts", [])
        for key, text in cluster.environment(container).items():
            if not text.startswith("/etc/hotplate/"):
                continue
            of_file = [mount for mount in mounts if text.startswith(f"{mount['mountPath']}/")]
            if not of_file or any("subPath" in mount for mount in of_file):
                yield f"{name} cannot follow the file of {key}"


def restricted_namespace(cluster: Cluster) -> Iterator[str]:
    """All is in one namespace, which refuses pods that are not confined."""
    for found in cluster.objects:
        if found["kind"] != "Namespace" and found["metadata"].get("namespace") != "hotplate":
            yield f"{name_of(found)} is in another namespace"
    for namespace in cluster.of("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{name_of(namespace)} takes any pod"


def labelled(cluster: Cluster) -> Iterator[str]:
    """Whatever runs says what it is, of what and in which version."""
    wanted = {f"app.kubernetes.io/{label}" for label in ("name", "component", "part-of", "version")}
    for pod in cluster.pods:
        if wanted - set(pod.labels):
            yield f"{pod} does not say what it is"


POLICIES: dict[str, Policy] = {
    policy.__name__: policy
    for policy in (
        unprivileged_pods, unprivileged_containers, read_only_root, bounded, probed, pinned_images,
        behind_network_policies, secrets_as_files, without_tokens, without_service_links, named_ports,
        matching_selectors, open_doors, existing_references, graceful_stops, careful_changes, patient_jobs,
        known_settings, accepted_settings, followed_files, restricted_namespace, labelled,
    )
}  # fmt: skip


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    for one in selector.get("matchExpressions", []):
        if one["operator"] != "In":
            raise NotImplementedError(one["operator"])
        if labels.get(one["key"]) not in one["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _unserved(cluster: Cluster, name: str, service: str, port: Any) -> Iterator[str]:  # noqa: ANN401 -- a name or a number
    found = cluster.named("Service", service)
    if not found or port not in {one[key] for one in found["spec"]["ports"] for key in ("name", "port")}:
        yield f"{name} leads to no Service"


def _variables(command: TyperCommand | TyperGroup) -> Iterator[str]:
    """Yield the variables of all options of a command and of those below it."""
    for parameter in command.params:
        named = parameter.envvar or ()
        yield from [named] if isinstance(named, str) else named
    for below in command.commands.values() if isinstance(command, TyperGroup) else ():
        yield from _variables(below)  # type: ignore[arg-type]  # typer makes commands and groups of its own only


def _parse(command: TyperCommand | TyperGroup, words: list[str]) -> None:
    while isinstance(command, TyperGroup):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[assignment]  # as above
    command.make_context("hotplate", list(words))
