"""Rules for manifests. Each yields checks: whether an object breaks the rule, and the objection."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast
from unittest.mock import patch

import click

from hotplate.cli.main import command
from hotplate.serve.processes.supervisor import STUCK_S
from hotplate.stores.connect import connect
from hotplate.stores.errors import StoreMisused
from tests.support.kubernetes import Object
from tests.support.variables import option_variables

VERBS = command()
# Variables without an option: secrets of stores, each read from a file.
SECRET_FILES = {"HOTPLATE_REDIS_PASSWORD_FILE", "HOTPLATE_COSMOS_KEY_FILE"}
SERVICES = ("Deployment", "StatefulSet", "DaemonSet")
# A service of one worker replaces it if it hangs, and the new one must start.
LIVENESS_S = 2 * STUCK_S
# Pod security `restricted`, and more.
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
LABELS = {f"app.kubernetes.io/{label}" for label in ("name", "component", "part-of", "version")}


@dataclass(frozen=True, slots=True)
class Pod:
    """The pods of one workload."""

    owner: Object
    labels: dict[str, str]
    spec: Object

    def __str__(self) -> str:
        return name_of(self.owner)

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def volumes(self) -> list[Object]:
        return cast("list[Object]", self.spec.get("volumes", []))

    @property
    def ports(self) -> set[str | int]:
        """Names and numbers of ports."""
        ports = [port for container in self.containers for port in container.get("ports", [])]
        return {port[key] for port in ports for key in ("name", "containerPort") if key in port}


class Cluster:
    """The objects of one deployment."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, *kinds: str) -> list[Object]:
        return [resource for resource in self.objects if resource["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        return next((resource for resource in self.of(kind) if resource["metadata"]["name"] == name), None)

    @cached_property
    def pods(self) -> list[Pod]:
        templates = [(owner, owner["spec"]["template"]) for owner in self.of(*SERVICES, "Job")]
        templates += [(owner, owner["spec"]["jobTemplate"]["spec"]["template"]) for owner in self.of("CronJob")]
        return [Pod(owner, template["metadata"]["labels"], template["spec"]) for owner, template in templates]

    def selected(self, selector: Object) -> list[Pod]:
        """Return the pods that a label selector matches."""
        return [pod for pod in self.pods if _matches(selector, pod.labels)]

    def environment(self, container: Object) -> dict[str, str]:
        """Return the environment of a container as far as the manifests set it."""
        variables = dict[str, str]()
        for source in container.get("envFrom", []):
            settings = self.named("ConfigMap", source.get("configMapRef", {}).get("name", ""))
            variables |= settings["data"] if settings else {}
        return variables | {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}

    @property
    def containers(self) -> Iterator[tuple[str, Pod, Object]]:
        """All containers with their names and pods."""
        for pod in self.pods:
            for container in pod.containers:
                yield f"{pod}, {container['name']}", pod, container


Checks = Iterator[tuple[object, str]]


def name_of(resource: Object) -> str:
    return f"{resource['kind']}/{resource['metadata']['name']}"


def objections(objects: list[Object], *policies: str) -> list[str]:
    """Return what breaks the named rules, by default all."""
    cluster = Cluster(objects)
    return [
        f"{name}: {objection}"
        for name in policies or POLICIES
        for broken, objection in POLICIES[name](cluster)
        if broken
    ]


def confined(cluster: Cluster) -> Checks:
    """Pods run without root, privileges, the host, the Kubernetes API and writable images."""
    for pod in cluster.pods:
        spec = pod.spec
        security = pod.spec.get("securityContext", {})
        is_user = security.get("runAsNonRoot") and security.get("runAsUser") and security.get("runAsGroup")
        yield not is_user, f"{pod} may run as root"
        yield security.get("seccompProfile") != {"type": "RuntimeDefault"}, f"{pod} may use every system call"
        yield {"hostNetwork", "hostPID", "hostIPC"} & set(spec), f"{pod} shares a namespace of its host"
        yield any("hostPath" in volume for volume in pod.volumes), f"{pod} mounts a folder of its host"
        unlimited = [
            volume["name"]
            for volume in pod.volumes
            if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit")
        ]
        yield unlimited, f"{pod}: {unlimited} may fill the disk of its node"
        yield spec.get("automountServiceAccountToken") is not False, f"{pod} mounts a token of the Kubernetes API"
        yield any("serviceAccountToken" in str(volume) for volume in pod.volumes), f"{pod} mounts a token"
        # The Service `hotplate` would set HOTPLATE_PORT.
        yield spec.get("enableServiceLinks") is not False, f"{pod} has Services in its environment"
    for name, _, container in cluster.containers:
        mounts = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
        yield container.get("securityContext") != CONTAINER_SECURITY, f"{name} is not confined"
        yield "/tmp" not in mounts, f"{name} has no folder for temporary files"
        yield any("hostPort" in port for port in container.get("ports", [])), f"{name} uses a port of its host"


def bounded(cluster: Cluster) -> Checks:
    """Containers have requests, limits, a pinned image and labels; services also probes."""
    for name, pod, container in cluster.containers:
        for bound in ("requests", "limits"):
            resources = container.get("resources", {}).get(bound, {})
            yield {"cpu", "memory"} - set(resources), f"{name} has no {bound} of CPU and memory"
        pinned = re.search(r"(:v?\d[\w.-]*|@sha256:[0-9a-f]{64})$", container["image"])
        yield not pinned, f"{name}: {container['image']} is not pinned"
        yield LABELS - set(pod.labels), f"{pod} lacks labels"
        for probe in ("startupProbe", "livenessProbe", "readinessProbe") if pod.owner["kind"] in SERVICES else ():
            port = container.get(probe, {"httpGet": {}}).get("httpGet", {"port": "exec"}).get("port")
            yield port not in pod.ports | {"exec"}, f"{name} has no {probe} on one of its ports"


def behind_network_policies(cluster: Cluster) -> Checks:
    """Network policies cover both directions of every pod, all in one namespace with restricted pods."""
    for pod in cluster.pods:
        covered = {
            direction
            for policy in cluster.of("NetworkPolicy")
            if pod in cluster.selected(policy["spec"]["podSelector"])
            for direction in policy["spec"]["policyTypes"]
        }
        yield covered != {"Ingress", "Egress"}, f"{pod}: no network policy covers what it sends and receives"
    for resource in cluster.objects:
        if resource["kind"] == "Namespace":
            enforced = resource["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
            yield enforced != "restricted", f"{name_of(resource)} accepts any pod"
        else:
            yield resource["metadata"].get("namespace") != "hotplate", f"{name_of(resource)} is in another namespace"


def secrets_as_files(cluster: Cluster) -> Checks:
    """No secret is in a manifest or an environment; files of secrets are for their user only."""
    for secret in cluster.of("Secret"):
        yield True, f"{name_of(secret)} is part of the manifests"
    texts = [
        (name_of(entry), key, text) for entry in cluster.of("ConfigMap") for key, text in entry.get("data", {}).items()
    ]
    for name, _, container in cluster.containers:
        texts += [(name, entry["name"], entry.get("value", "")) for entry in container.get("env", [])]
        refers = [entry.get("valueFrom", {}).get("secretKeyRef") for entry in container.get("env", [])]
        refers += [entry.get("secretRef") for entry in container.get("envFrom", [])]
        yield any(refers), f"{name} has a secret in its environment"
    for name, key, text in texts:
        is_secret = re.search(r"PASSWORD|SECRET|TOKEN|_KEYS?$", key) and not re.match(r"/|prod$", text)
        has_secret = re.search(r"://[^/\s@]*:[^/\s@]+@|-----BEGIN|requirepass|AccountKey=", text)
        yield is_secret or has_secret, f"{name} has a secret in {key}"
    for pod in cluster.pods:
        modes = {entry["secret"].get("defaultMode") for entry in pod.volumes if "secret" in entry}
        yield modes - {0o440}, f"{pod}: everybody in the container may read a secret"


def connected(cluster: Cluster) -> Checks:
    """Ports have names; services, policies, budgets and autoscalers refer to what exists."""
    for name, _, container in cluster.containers:
        yield any("name" not in port for port in container.get("ports", [])), f"{name} has a port without a name"
    for service in cluster.of("Service"):
        pods = cluster.selected({"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            served = "name" in port and pods and all(port.get("targetPort") in pod.ports for pod in pods)
            yield not served, f"{name_of(service)} has no pod with its port"
    for policy in cluster.of("NetworkPolicy"):
        pods = cluster.selected(policy["spec"]["podSelector"])
        ports = [port["port"] for rule in policy["spec"].get("ingress", []) for port in rule["ports"]]
        is_connected = pods and all(port in pod.ports for pod in pods for port in ports)
        yield not is_connected, f"{name_of(policy)} is for pods or ports that do not exist"
    for workload in cluster.of(*SERVICES):
        own = workload["spec"]["template"]["metadata"]["labels"]
        yield not _matches(workload["spec"]["selector"], own), f"{name_of(workload)} does not select its own pods"
    for budget in cluster.of("PodDisruptionBudget"):
        yield not cluster.selected(budget["spec"]["selector"]), f"{name_of(budget)} selects nothing"
    for scaler in cluster.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        yield not cluster.named(target["kind"], target["name"]), f"{name_of(scaler)} scales nothing"


def existing_references(cluster: Cluster) -> Checks:
    """What a pod takes from other objects exists, but secrets, which their owner makes."""
    for pod in cluster.pods:
        wanted = [("ServiceAccount", pod.spec["serviceAccountName"])] if "serviceAccountName" in pod.spec else []
        wanted += [("ConfigMap", entry["configMap"]["name"]) for entry in pod.volumes if "configMap" in entry]
        claims = [entry["persistentVolumeClaim"] for entry in pod.volumes if "persistentVolumeClaim" in entry]
        wanted += [("PersistentVolumeClaim", claim["claimName"]) for claim in claims]
        for container in pod.containers:
            sources = [entry["configMapRef"] for entry in container.get("envFrom", []) if "configMapRef" in entry]
            wanted += [("ConfigMap", entry["name"]) for entry in sources]
        for kind, name in wanted:
            yield not cluster.named(kind, name), f"{pod} wants {kind}/{name}, which does not exist"


def careful_changes(cluster: Cluster) -> Checks:
    """Services drain before they are killed, and roll-outs never take away a pod before its successor is ready."""
    for name, pod, container in cluster.containers:
        if container.get("args") == ["serve"]:
            environment = cluster.environment(container)
            waits = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["0"])[-1]
            delay, drain = (float(environment.get(key, "inf")) for key in ("HOTPLATE_DRAIN_DELAY", "HOTPLATE_DRAIN"))
            grace = pod.spec.get("terminationGracePeriodSeconds", 30)
            yield float(waits) + delay + drain >= grace, f"{name} may be killed before it has drained"
            yield float(waits) + delay < 2, f"{name} closes its port before the cluster can know"
            probe = container.get("livenessProbe", {})
            patience_s = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
            yield patience_s < LIVENESS_S, f"{name} is killed before it has replaced a worker that hangs"
    scaled = {
        autoscaler["spec"]["scaleTargetRef"]["name"]: autoscaler["spec"]
        for autoscaler in cluster.of("HorizontalPodAutoscaler")
    }
    for workload in cluster.of("Deployment"):
        name = name_of(workload)
        spec = workload["spec"]
        strategy = workload["spec"]["strategy"]
        scaler = scaled.get(workload["metadata"]["name"])
        yield ("replicas" in spec) == (scaler is not None), f"{name}: its replicas have no owner, or two"
        yield scaler is not None and scaler["minReplicas"] < 2, f"{name} may be down to one pod"
        if strategy["type"] == "Recreate":
            yield spec.get("replicas") != 1, f"{name} is away while it is rolled out"
        else:
            yield strategy["rollingUpdate"]["maxUnavailable"] != 0, f"{name} loses pods while it is rolled out"


def bounded_jobs(cluster: Cluster) -> Checks:
    """A scheduled job runs once at a time and ends; misuse and refusals by gates are not retried."""
    for job in cluster.of("CronJob"):
        once = job["spec"]["concurrencyPolicy"] == "Forbid" and "startingDeadlineSeconds" in job["spec"]
        yield not once, f"{name_of(job)} may run twice at once, or very late"
    for pod in cluster.pods:
        if pod.owner["kind"] in SERVICES:
            continue
        spec = pod.owner["spec"]
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        yield {"backoffLimit", "activeDeadlineSeconds"} - set(spec), f"{pod} may run for ever"
        codes = [rule.get("onExitCodes", {}) for rule in spec.get("podFailurePolicy", {}).get("rules", [])]
        final = any({2, 3} <= set(code.get("values", ())) for code in codes)
        yield spec.get("backoffLimit") != 0 and not final, f"{pod} repeats what would fail again"


def accepted_settings(cluster: Cluster) -> Checks:
    """The parser accepts every container's command and environment; files of settings are in mounted folders."""
    known = option_variables() | SECRET_FILES
    for name, _, container in cluster.containers:
        environment = cluster.environment(container)
        mounts = container.get("volumeMounts", [])
        unknown = {key for key in environment if key.startswith("HOTPLATE_")} - known
        yield unknown, f"{name}: no verb has {unknown}"
        for key, text in environment.items():
            if text.startswith("/etc/hotplate/"):  # changes are not seen through `subPath`
                folders = [mount["mountPath"] for mount in mounts if "subPath" not in mount]
                followed = any(text.startswith(f"{folder}/") for folder in folders)
                yield not followed, f"{name} cannot follow the file of {key}"
        script = next((line for line in container.get("command", []) if "bin/hotplate " in line), None)
        if script is not None or ("command" not in container and container["image"].startswith("hotplate")):
            words = script.partition("bin/hotplate ")[2].split() if script else container["args"]
            yield from _refusals(name, words, environment)


POLICIES: dict[str, Callable[[Cluster], Checks]] = {
    policy.__name__: policy
    for policy in (
        confined, bounded, behind_network_policies, secrets_as_files, connected,
        existing_references, careful_changes, bounded_jobs, accepted_settings,
    )
}  # fmt: skip


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        if expression["operator"] != "In":
            raise NotImplementedError(expression["operator"])
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def _refusals(name: str, words: list[str], environment: dict[str, str]) -> Checks:
    settings = {key: text for key, text in environment.items() if key not in SECRET_FILES}
    with patch.dict(os.environ, settings):
        try:
            _parse(VERBS, words)
            for url in (url for key in ("STORE", "FROM", "TO") for url in settings.get(f"HOTPLATE_{key}", "").split()):
                connect(url)
        except (click.ClickException, StoreMisused) as error:
            yield True, f"{name} would not start: {error}"


def _parse(command: click.Command, words: list[str]) -> None:
    while isinstance(command, click.Group):
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context("hotplate", list(words))
