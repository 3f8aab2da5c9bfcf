"""The manifests in deploy/kubernetes: valid, with no name that nothing bears, and settings that the daemon takes."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest

from loadpart_edge.metrics import Metrics
from loadpart_edge.settings import Settings
from loadpart_edge.workers.cluster.environment import SETTINGS
from tests.manifests import Manifests, read, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.manifests import Document

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.37.0"

RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": str, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": {"upscalingMode": str, "idleTimeoutSeconds": int, "securityContext": dict},
    "headGroupSpec": {"rayStartParams": dict, "template": dict},
    "workerGroupSpecs": [
        {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict,
         "template": dict},
    ],
}  # fmt: skip
"""Fields of KubeRay's RayCluster (ray.io/v1) that the manifests use, and their types."""


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """A file; what a user makes by hand is in the guide."""
    guide = (ROOT / "docs" / "scaling.md").read_text()
    by_hand = {("Secret", name) for name in re.findall(r"kubectl create secret generic (\S+)", guide)}
    by_hand |= {("PersistentVolumeClaim", name) for name in re.findall(r"volume claim `(\S+)`", guide)}
    metrics = Metrics()
    metrics.follow(_Anything(), _Anything(), lambda: 0)  # type: ignore[arg-type]
    return Manifests(read(request.param), by_hand, {family.name for family in metrics.registry.collect()})


class _Anything:
    """Stands for what gauges read: only their names are wanted here."""

    def __getattr__(self, _: str) -> Any:
        return _Anything()

    def __float__(self) -> float:
        return 0.0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def check_fields(value: Any, expected: Any, where: str) -> None:
    """Checks that all fields are known and of their types."""
    if isinstance(expected, list):
        for each in value:
            check_fields(each, expected[0], where)
    elif isinstance(expected, dict):
        assert set(value) <= set(expected), f"{where}: unknown fields"
        for name, of in value.items():
            check_fields(of, expected[name], f"{where}.{name}")
    else:
        assert isinstance(value, expected), where


def test_both_ways_are_there() -> None:
    kinds = {path.name: {document["kind"] for document in read(path)} for path in FILES}
    assert {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"} <= kinds["servers.yaml"]
    assert {"RayCluster", "Service"} <= kinds["cluster.yaml"]


def test_every_document_is_valid(manifests: Manifests) -> None:
    for document in manifests.documents:
        if document["kind"] == "RayCluster":
            assert document["apiVersion"] == "ray.io/v1"
            check_fields(document["spec"], RAY_CLUSTER, "spec")
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for pod in manifests.pods:
        metadata = {"name": "pod", "labels": pod.labels}
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}
        kubernetes_validate.validate(as_pod, KUBERNETES, strict=True)


def test_every_name_is_borne_by_something(manifests: Manifests) -> None:
    assert manifests.dangling() == []


def test_the_daemon_takes_its_settings(manifests: Manifests) -> None:
    (text,) = settings(manifests.documents)
    taken = Settings(**tomllib.loads(text))
    (pod,) = [pod for pod in manifests.pods if "daemon" in {container["name"] for container in pod.containers}]
    (daemon,) = [container for container in pod.containers if container["name"] == "daemon"]
    assert daemon["args"] == ["serve", "--config", "/etc/loadpart/edge.toml"]
    ports = {port["name"].removeprefix("edge-"): port["containerPort"] for port in daemon["ports"]}
    assert taken.health_listen is not None
    told = {"grpc": taken.listen.target, "health": taken.health_listen.target, "metrics": taken.metrics_listen}
    assert {name: f"0.0.0.0:{port}" for name, port in ports.items()} == told
    paused = daemon["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod.spec["terminationGracePeriodSeconds"] > taken.drain_seconds + paused
    mounted = [Path(mount["mountPath"]) for mount in daemon["volumeMounts"]]
    for path in (taken.store, taken.latency_folder, taken.tls_certificate, taken.clients):
        assert path is not None
        assert any(path.is_relative_to(folder) for folder in mounted), path


def test_workers_have_as_many_threads_as_their_pods_have_cores(manifests: Manifests) -> None:
    (text,) = settings(manifests.documents)
    taken = Settings(**tomllib.loads(text))
    (pod,) = [pod for pod in manifests.pods if pod.labels.get("role") in (None, "worker")]
    resources = pod.containers[0]["resources"]
    assert int(resources["limits"]["cpu"]) == int(resources["requests"]["cpu"]) == taken.threads


def test_nodes_have_the_settings_of_the_daemon() -> None:
    (path,) = [path for path in FILES if path.name == "cluster.yaml"]
    documents = read(path)
    (given,) = [each["data"] for each in documents if each["metadata"]["name"] == "loadpart-cluster-ray"]
    assert given == SETTINGS
    (cluster,) = [each["spec"] for each in documents if each["kind"] == "RayCluster"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    (text,) = settings(documents)
    taken = Settings(**tomllib.loads(text))
    for group in cluster["workerGroupSpecs"]:
        room = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert all(room.get(name, 0) >= amount for name, amount in taken.worker_resources.items())
    assert taken.workers_max <= sum(group["maxReplicas"] for group in cluster["workerGroupSpecs"])


def first(documents: list[Document], kind: str) -> Document:
    return next(document for document in documents if document["kind"] == kind)


BREAKS: dict[str, Callable[[list[Document]], Any]] = {
    "selects no pods": lambda all_: first(all_, "Service")["spec"]["selector"].update(app="other"),
    "no port 'other'": lambda all_: first(all_, "Service")["spec"]["ports"][0].update(targetPort="other"),
    "no Deployment 'other'": lambda all_: first(all_, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(
        name="other"
    ),
    "no metric 'other'": lambda all_: first(all_, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"][
        "metric"
    ].update(name="other"),
    "no Secret 'other'": lambda all_: first(all_, "Deployment")["spec"]["template"]["spec"]["volumes"][1][
        "secret"
    ].update(secretName="other"),
    "no volume 'other'": lambda all_: first(all_, "Deployment")["spec"]["template"]["spec"]["containers"][0][
        "volumeMounts"
    ][0].update(name="other"),
    "no key 'edge.toml'": lambda all_: first(all_, "ConfigMap")["data"].clear(),
    "readinessProbe of daemon: no port 1": lambda all_: first(all_, "Deployment")["spec"]["template"]["spec"][
        "containers"
    ][0]["readinessProbe"]["grpc"].update(port=1),
    "spreads other pods": lambda all_: first(all_, "Deployment")["spec"]["template"]["spec"][
        "topologySpreadConstraints"
    ][0]["labelSelector"]["matchLabels"].update(app="other"),
}


@pytest.mark.parametrize("message", BREAKS)
@pytest.mark.parametrize("manifests", FILES[-1:], ids=lambda path: path.name, indirect=True)
def test_a_name_that_nothing_bears_is_found(manifests: Manifests, message: str) -> None:
    broken = copy.deepcopy(manifests.documents)
    BREAKS[message](broken)
    found = Manifests(broken, manifests.made_by_hand, manifests.metrics).dangling()
    assert any(message in each for each in found), found
