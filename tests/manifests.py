"""Reads Kubernetes manifests and finds names in them that nothing bears, which their schemas do not see."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

Document = dict[str, Any]


@dataclass
class PodTemplate:
    """The pods that a manifest makes.

    Attributes:
        where: For messages.
        labels: Their labels.
        spec: Their specification.
    """

    where: str
    labels: dict[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> set[str | int]:
        """Names and numbers."""
        ports = [port for container in self.containers for port in container.get("ports", [])]
        return {port["name"] for port in ports} | {port["containerPort"] for port in ports}


@dataclass
class Manifests:
    """Manifests that are applied together.

    Attributes:
        documents: What they make.
        made_by_hand: Kinds and names of what is there already, such as ("Secret", "credentials").
        metrics: Names of the metrics that pods export.
    """

    documents: list[Document]
    made_by_hand: set[tuple[str, str]] = field(default_factory=set)
    metrics: set[str] = field(default_factory=set)

    def of(self, *kinds: str) -> Iterator[Document]:
        return (document for document in self.documents if document["kind"] in kinds)

    @property
    def pods(self) -> list[PodTemplate]:
        kinds = self.of("Deployment", "DaemonSet", "StatefulSet", "Job")
        found = [_pods(document, "", document["spec"]["template"]) for document in kinds]
        for document in self.of("RayCluster"):
            head, groups = document["spec"]["headGroupSpec"], document["spec"]["workerGroupSpecs"]
            found.append(_pods(document, " head", head["template"]))
            found += [_pods(document, f" {group['groupName']}", group["template"]) for group in groups]
        return found

    def dangling(self) -> list[str]:
        """A message for each name that nothing bears."""
        return [
            *self._volumes(),
            *self._references(),
            *self._probed_ports(),
            *self._selectors(),
            *self._operators_ports(),
            *self._service_ports(),
            *self._scalers(),
        ]

    def _has(self, kind: str, name: str) -> bool:
        made = {(document["kind"], document["metadata"]["name"]) for document in self.documents}
        return (kind, name) in made | self.made_by_hand

    def _volumes(self) -> Iterator[str]:
        for pod in self.pods:
            volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
            mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", [])}
            yield from (f"{pod.where}: no volume {name!r}" for name in mounted - volumes)
            yield from (f"{pod.where}: volume {name!r} is not mounted" for name in volumes - mounted)

    def _references(self) -> Iterator[str]:
        for pod in self.pods:
            for kind, name, key in _references(pod):
                if not self._has(kind, name):
                    yield f"{pod.where}: no {kind} {name!r}"
                made = [each for each in self.of(kind) if each["metadata"]["name"] == name]
                if key and made and key not in made[0]["data"]:
                    yield f"{pod.where}: no key {key!r} in {kind} {name!r}"
        for document in self.of("RayCluster"):
            secret = document["spec"]["authOptions"]["secretName"]
            if not self._has("Secret", secret):
                yield f"{_where(document)}: no Secret {secret!r}"

    def _probed_ports(self) -> Iterator[str]:
        for pod in self.pods:
            for container in pod.containers:
                own = PodTemplate("", {}, {"containers": [container]}).ports
                for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                    for how in ("grpc", "tcpSocket", "httpGet"):
                        port = container.get(kind, {}).get(how, {}).get("port")
                        if port is not None and port not in own:
                            yield f"{pod.where}: {kind} of {container['name']}: no port {port!r}"

    def _selected(self, labels: dict[str, str]) -> list[PodTemplate]:
        return [pod for pod in self.pods if labels.items() <= pod.labels.items()]

    def _selectors(self) -> Iterator[str]:
        selectors: list[tuple[Document, dict[str, str]]] = []
        selectors += [(each, each["spec"]["selector"]) for each in self.of("Service")]
        for each in self.of("Deployment", "DaemonSet", "StatefulSet", "PodDisruptionBudget"):
            selectors.append((each, each["spec"]["selector"]["matchLabels"]))
        selectors += [(each, each["spec"]["podSelector"].get("matchLabels", {})) for each in self.of("NetworkPolicy")]
        for document, labels in selectors:
            if not self._selected(labels):
                yield f"{_where(document)}: selects no pods: {labels}"
        for pod in self.pods:
            for spread in pod.spec.get("topologySpreadConstraints", []):
                if not spread["labelSelector"]["matchLabels"].items() <= pod.labels.items():
                    yield f"{pod.where}: spreads other pods than its own"

    def _operators_ports(self) -> Iterator[str]:
        """KubeRay adds ports to the first container of a pod, which names would then mean."""
        for document in self.of("RayCluster"):
            for pod in (each for each in self.pods if each.where.startswith(_where(document))):
                for container in pod.containers[1:]:
                    if any(port["name"] == "metrics" for port in container.get("ports", [])):
                        yield f"{pod.where}: port 'metrics' of {container['name']} is hidden by Ray's"

    def _service_ports(self) -> Iterator[str]:
        for document in self.of("Service"):
            for port in document["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                for pod in self._selected(document["spec"]["selector"]):
                    if target not in pod.ports:
                        yield f"{_where(document)}: no port {target!r} in {pod.where}"
        for document in self.of("NetworkPolicy"):
            rules = document["spec"].get("ingress", [])
            for port in (port["port"] for rule in rules for port in rule.get("ports", [])):
                for pod in self._selected(document["spec"]["podSelector"].get("matchLabels", {})):
                    if port not in pod.ports:
                        yield f"{_where(document)}: no port {port!r} in {pod.where}"

    def _scalers(self) -> Iterator[str]:
        for document in self.of("HorizontalPodAutoscaler"):
            target = document["spec"]["scaleTargetRef"]
            found = [each for each in self.of(target["kind"]) if each["metadata"]["name"] == target["name"]]
            if not found or found[0]["apiVersion"] != target["apiVersion"]:
                yield f"{_where(document)}: no {target['kind']} {target['name']!r}"
            elif "replicas" in found[0]["spec"]:
                yield f"{_where(document)}: {target['name']} says itself how many replicas there are"
            for metric in document["spec"]["metrics"]:
                name = metric["pods"]["metric"]["name"]
                if name not in self.metrics:
                    yield f"{_where(document)}: no metric {name!r}"


def read(path: Path) -> list[Document]:
    """The documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def settings(documents: Iterable[Document]) -> Iterator[str]:
    """Settings of daemons, as TOML."""
    for document in documents:
        if document["kind"] == "ConfigMap" and "edge.toml" in document["data"]:
            yield document["data"]["edge.toml"]


def _where(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def _pods(document: Document, which: str, template: Document) -> PodTemplate:
    return PodTemplate(f"{_where(document)}{which}", template["metadata"]["labels"], template["spec"])


def _references(pod: PodTemplate) -> Iterator[tuple[str, str, str | None]]:
    """Kinds and names, with keys in them, that a pod needs."""
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    for volume in volumes.values():
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            if "subPath" in mount and "configMap" in volumes.get(mount["name"], {}):
                yield "ConfigMap", volumes[mount["name"]]["configMap"]["name"], mount["subPath"]
        for variables in container.get("envFrom", []):
            yield "ConfigMap", variables["configMapRef"]["name"], None
        for variable in container.get("env", []):
            if "secretKeyRef" in variable.get("valueFrom", {}):
                reference = variable["valueFrom"]["secretKeyRef"]
                yield "Secret", reference["name"], reference["key"]
