"""The chart renders and lints; what it gives is valid, and Ray, Serve and the fleet's own configuration read it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from cluster.config import FleetConfig
from tests.infra.kuberay import POD_MONITOR, RAY_SERVICE

helm = pytest.importorskip("helm_python", reason="Helm's library has no wheel for this machine")
KUBERNETES = Path(__file__).parents[2] / "infra" / "kubernetes"
CHART = KUBERNETES / "chart"
ELSEWHERE: dict[str, Any] = {
    "image": {"repository": "registry.example/quantfleet", "pullSecrets": [{"name": "registry"}]},
    "cache": {"existingClaim": "models"},
    "head": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"operator": "Exists"}]},
    "workerGroups": [
        {"name": "l4", "accelerator": "L4", "gpus": 2, "minReplicas": 0, "maxReplicas": 3}
        | {"shmSize": "8Gi", "resources": {"requests": {"cpu": "4"}}}
    ],
    "podMonitor": {"labels": {"release": "prometheus"}},
    "networkPolicy": {"clients": [], "operator": []},
}
NOTHING: dict[str, Any] = {"podMonitor": {"enabled": False}, "networkPolicy": {"enabled": False}}


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values=values, name="quantfleet")
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def of_kind(kind: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    [found] = [document for document in rendered(values or {}) if document["kind"] == kind]
    return found


def pod_templates(service: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]


def serve_config() -> dict[str, Any]:
    return yaml.safe_load(of_kind("RayService")["spec"]["serveConfigV2"])


def named(import_path: str) -> Any:
    module, name = import_path.split(":")
    return getattr(import_module(module), name)


def test_the_chart_lints() -> None:
    told = helm.lint(CHART)
    assert told["errors"] == []
    assert [each["error"] for each in told["messages"] if each["severity"] > 1] == []


def test_the_manifests_are_what_the_chart_gives() -> None:
    kept = yaml.safe_load_all((KUBERNETES / "quantfleet.yaml").read_text())
    by_kind = {document["kind"]: document for document in kept}
    assert by_kind == {document["kind"]: document for document in rendered({})}


@pytest.mark.parametrize("values", [{}, ELSEWHERE, NOTHING], ids=["default", "elsewhere", "nothing"])
def test_every_manifest_is_valid(values: dict[str, Any]) -> None:
    own = {"RayService": RAY_SERVICE, "PodMonitor": POD_MONITOR}
    for document in rendered(values):
        if document["kind"] in own:
            jsonschema.validate(document, own[document["kind"]])
        else:
            kubernetes_validate.validate(document, "1.37", strict=True)
    for template in pod_templates(of_kind("RayService", values)):
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template}
        kubernetes_validate.validate(whole, "1.37", strict=True)


def test_a_value_that_the_chart_does_not_know_is_refused() -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError, match="replicaCount"):
        chart.render(values={"replicaCount": 3}, name="quantfleet")


def test_the_pods_read_this_fleet() -> None:
    fleet = FleetConfig.of(yaml.safe_load(of_kind("ConfigMap")["data"]["fleet.yaml"]))
    assert fleet.is_autoscaled
    assert not fleet.http.is_loopback
    assert fleet.accelerator.resource == "H100-80G"
    mounts = [
        mount["mountPath"]
        for template in pod_templates(of_kind("RayService"))
        for mount in template["spec"]["containers"][0]["volumeMounts"]
    ]
    assert fleet.auth.keys_file is not None
    assert mounts.count(str(Path(fleet.auth.keys_file).parent)) == mounts.count("/etc/quantfleet/fleet.yaml") == 2


def test_another_fleet_is_another_cluster() -> None:
    here, there = (
        [template["metadata"]["annotations"] for template in pod_templates(of_kind("RayService", values))]
        for values in ({}, {"fleet": {"engine": {"max_context": 8192}}})
    )
    assert all(one != other for one, other in zip(here, there, strict=True))


def test_serve_takes_its_configuration() -> None:
    schema = ServeDeploySchema.model_validate(serve_config())
    [application] = schema.applications
    assert application.args == {"config": "/etc/quantfleet/fleet.yaml"}
    assert callable(named(application.import_path))
    assert application.autoscaling_policy is not None
    policy = AutoscalingPolicy(**application.autoscaling_policy)
    named(policy.policy_function)(**policy.policy_kwargs)
    for template in pod_templates(of_kind("RayService")):
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == schema.http_options.port


@pytest.mark.parametrize(
    ("values", "name", "resource", "gpus"), [({}, "h100", "H100-80G", 1), (ELSEWHERE, "l4", "L4", 2)]
)
def test_ray_knows_what_a_new_worker_would_bring(values: dict[str, Any], name: str, resource: str, gpus: int) -> None:
    cluster = of_kind("RayService", values)["spec"]["rayClusterConfig"]
    derived = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "quantfleet", "namespace": "default"}, "spec": cluster}
    )
    assert derived["idle_timeout_minutes"] == 5
    workers = derived["available_node_types"][name]
    assert workers["max_workers"] >= workers["min_workers"]
    assert workers["resources"]["GPU"] == gpus
    assert workers["resources"][resource] == gpus
    assert derived["available_node_types"]["headgroup"]["resources"]["CPU"] == 0


def test_no_container_runs_as_root_or_may_become_it() -> None:
    for template in pod_templates(of_kind("RayService")):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_rays_ports_are_open_to_the_fleets_own_pods_alone() -> None:
    policy = of_kind("NetworkPolicy")["spec"]
    own = policy["podSelector"]
    assert all(
        own["matchLabels"].items() <= template["metadata"]["labels"].items()
        for template in pod_templates(of_kind("RayService"))
    )
    everywhere = [rule["from"] for rule in policy["ingress"] if "ports" not in rule]
    assert everywhere == [[{"podSelector": own}]]
    open_ports = {port["port"] for rule in policy["ingress"] for port in rule.get("ports", [])}
    assert open_ports == {8000, 8080, 8265}
