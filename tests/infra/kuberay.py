"""What KubeRay's and the Prometheus operator's own kinds may hold, as JSON schemas; pod templates are not looked into.

Fields of github.com/ray-project/kuberay, docs/reference/api.md (v1.5), and of github.com/prometheus-operator/
prometheus-operator, Documentation/api-reference/api.md; of the latter only those that the chart writes.
"""

from __future__ import annotations

from typing import Any

STRING, INTEGER, BOOLEAN = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": STRING}
ANYTHING: dict[str, Any] = {"type": "object"}
LIST = {"type": "array", "items": ANYTHING}


def struct(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


AUTOSCALER_OPTIONS = struct(
    resources=ANYTHING,
    image=STRING,
    imagePullPolicy=STRING,
    securityContext=ANYTHING,
    idleTimeoutSeconds=INTEGER,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env=LIST,
    envFrom=LIST,
    volumeMounts=LIST,
)
HEAD_GROUP = struct(
    ("template",),
    template=ANYTHING,
    headService=ANYTHING,
    enableIngress=BOOLEAN,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    serviceType=STRING,
)
WORKER_GROUP = struct(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    suspend=BOOLEAN,
    groupName=STRING,
    replicas=INTEGER,
    minReplicas=INTEGER,
    maxReplicas=INTEGER,
    idleTimeoutSeconds=INTEGER,
    resources=STRINGS,
    labels=STRINGS,
    rayStartParams=STRINGS,
    template=ANYTHING,
    scaleStrategy=ANYTHING,
    numOfHosts=INTEGER,
)
RAY_CLUSTER = struct(
    ("headGroupSpec",),
    authOptions=struct(mode={"enum": ["disabled", "token"]}),
    suspend=BOOLEAN,
    managedBy=STRING,
    autoscalerOptions=AUTOSCALER_OPTIONS,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=ANYTHING,
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
METADATA = struct(("name",), name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)
RAY_SERVICE = struct(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    metadata=METADATA,
    spec=struct(
        rayClusterDeletionDelaySeconds=INTEGER,
        serveService=ANYTHING,
        upgradeStrategy=ANYTHING,
        serveConfigV2=STRING,
        rayClusterConfig=RAY_CLUSTER,
        excludeHeadPodFromServeSvc=BOOLEAN,
    ),
)
POD_MONITOR = struct(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata=METADATA,
    spec=struct(
        ("selector", "podMetricsEndpoints"),
        selector=struct(matchLabels=STRINGS),
        podMetricsEndpoints={
            "type": "array",
            "items": struct(port=STRING, interval={"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}),
        },
    ),
)
