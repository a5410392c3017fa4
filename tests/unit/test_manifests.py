"""What the manifests in k8s/ promise, as far as it can be tested without a cluster."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
SERVICES = ("hasher", "redis", "rng", "webui", "worker")
COMPOSE = yaml.safe_load((K8S.parent / "docker-compose.yml").read_text())["services"]
PORTS = {80, 6379, 53}
PORTS_OF = dict.fromkeys(("prometheus", "network-policies"), PORTS | {9090, 9115, 9121})
PORTS_OF["registry"] = {5000}  # all others: PORTS


def load(name):
    """Return the objects of a file in k8s/."""
    return [thing for thing in yaml.safe_load_all((K8S / name).read_text()) if thing]


def values(thing, key):
    """Return all values of `key`, at any depth of `thing`."""
    if isinstance(thing, list):
        return [value for each in thing for value in values(each, key)]
    if not isinstance(thing, dict):
        return []
    own = [thing[key]] if key in thing else []
    return own + [value for each in thing.values() for value in values(each, key)]


FILES = [path for path in sorted(K8S.rglob("*.yaml")) if path.name != "kustomization.yaml"]
OBJECTS = [
    pytest.param(path.parent.name, thing, id=f"{path.relative_to(K8S)}:{thing['kind']}")
    for path in FILES
    for thing in load(path)
]
WORKLOADS = [each for each in OBJECTS if each.values[1]["kind"] in ("Deployment", "DaemonSet")]


@pytest.mark.parametrize("version", ["1.27", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("folder, thing", OBJECTS)
def test_manifest_matches_the_strict_schema(folder, thing, version):
    kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("folder, thing", OBJECTS)
def test_pods_services_and_policies_use_only_the_documented_ports(folder, thing):
    named = values(thing, "port") + values(thing, "containerPort") + values(thing, "hostPort")
    assert set(named) <= PORTS_OF.get(folder, PORTS)
    assert values(thing, "targetPort") == []  # a pod's port is its Service's


@pytest.mark.parametrize("folder, thing", OBJECTS)
def test_default_pods_set_neither_port_nor_sysctl(folder, thing):
    assert values(thing, "sysctls") == []  # kernels before 4.11 would not start the pod
    assert "PORT" not in [each.get("name") for each in sum(values(thing, "env"), [])]


@pytest.mark.parametrize("folder, workload", WORKLOADS)
def test_container_labels_and_selector_have_the_name_of_the_workload(folder, workload):
    name, spec = workload["metadata"]["name"], workload["spec"]
    assert values(spec, "matchLabels") == values(spec, "labels") == [{"app": name}]
    assert [each["name"] for each in values(spec, "containers")[0]] == [name]


@pytest.mark.parametrize("name", SERVICES)
def test_file_has_a_deployment_and_except_for_worker_a_service_of_that_name(name):
    things = load(f"{name}.yaml")
    kinds = ["Deployment"] if name == "worker" else ["Deployment", "Service"]
    assert [thing["kind"] for thing in things] == kinds
    for thing in things:
        assert thing["metadata"] == {"name": name, "labels": {"app": name}}  # in any namespace


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "worker"])
def test_service_leads_to_the_port_of_its_container_and_only_webui_has_a_node_port(name):
    deployment, service = load(f"{name}.yaml")
    assert service["spec"]["selector"] == {"app": name}
    assert values(service, "ports") == [[{"port": 6379 if name == "redis" else 80}]]
    assert values(deployment, "containerPort") == values(service, "port")
    assert values(service, "type") == ["NodePort"] * (name == "webui")


@pytest.mark.parametrize("folder, workload", WORKLOADS)
def test_images_are_those_of_the_compose_file(folder, workload):
    name, images = workload["metadata"]["name"], values(workload, "image")
    assert all(":" in image.rpartition("/")[2] for image in images)  # a tag
    if name in SERVICES:
        image = COMPOSE[name]["image"]
        for variable in ("${REGISTRY:-", "${TAG:-", "}"):  # the defaults
            image = image.replace(variable, "")
        assert images == [image]


def test_image_names_contain_the_node_port_of_the_registry():
    (port,) = values(load("registry/registry.yaml"), "nodePort")
    assert values(load("rng.yaml"), "image") == [f"127.0.0.1:{port}/dockercoins/rng:v1.0"]


@pytest.mark.parametrize("folder, workload", WORKLOADS)
def test_pod_has_no_privilege_and_no_token_and_limits_only_memory(folder, workload):
    web = workload["metadata"]["name"] in ("rng", "hasher", "webui")
    assert values(workload, "drop") == [["ALL"]]
    assert values(workload, "add") == [["NET_BIND_SERVICE", "SETGID", "SETUID"]] * web
    assert values(workload, "readOnlyRootFilesystem") == [True]
    for name in "allowPrivilegeEscalation", "automountServiceAccountToken", "enableServiceLinks":
        assert values(workload, name) == [False]
    assert values(workload, "seccompProfile") == [{"type": "RuntimeDefault"}]
    pod = workload["spec"]["template"]["spec"]
    assert not set(pod) & {"hostNetwork", "hostPID", "hostIPC", "hostUsers"}
    assert not set(pod) & {"initContainers", "ephemeralContainers"}
    volumes = {kind for volume in pod.get("volumes", []) for kind in volume}
    assert volumes <= {"name", "emptyDir", "persistentVolumeClaim", "configMap"}
    if not web:  # which become nobody before anything of ours runs
        assert values(workload, "runAsNonRoot") == [True]
        assert min(values(workload, "runAsUser") + values(workload, "runAsGroup")) > 0
    assert [set(limits) for limits in values(workload, "limits")] == [{"memory"}]
    assert [set(requests) for requests in values(workload, "requests")] == [{"cpu", "memory"}]


def test_apply_and_kustomize_deploy_the_same_five_services():
    files = [f"{name}.yaml" for name in SERVICES]
    assert sorted(path.name for path in K8S.glob("*.y*ml")) == files
    assert sorted(values(load("Kustomization"), "resources")[0]) == files
    overlay = values(load("restricted/kustomization.yaml"), "resources")[0]
    assert sorted(overlay) == [f"../{name}" for name in files]


def test_daemonset_runs_the_same_pods_as_the_deployment():
    (daemonset,), (deployment, _) = load("rng-daemonset/rng.yaml"), load("rng.yaml")
    assert daemonset["metadata"] == deployment["metadata"]
    assert daemonset["spec"]["template"] == deployment["spec"]["template"]


def test_redis_volume_differs_from_redis_only_in_its_volume():
    (claim, changed), (deployment, _) = load("redis-volume/redis.yaml"), load("redis.yaml")
    (volume,) = changed["spec"]["template"]["spec"]["volumes"]
    assert volume.pop("persistentVolumeClaim") == {"claimName": claim["metadata"]["name"]}
    volume["emptyDir"] = {}
    assert changed == deployment


@pytest.mark.parametrize("folder, workload", WORKLOADS)
def test_applying_again_keeps_the_scale_and_pulls_only_missing_images(folder, workload):
    assert "replicas" not in workload["spec"]
    assert values(workload, "imagePullPolicy") == ["IfNotPresent"]


@pytest.mark.parametrize("folder, workload", WORKLOADS)
def test_probes_ask_the_port_of_the_container_and_tolerate_a_busy_node(folder, workload):
    name, spec = workload["metadata"]["name"], workload["spec"]
    probes = values(spec, "livenessProbe") + values(spec, "readinessProbe")
    assert len(probes) == (0 if name == "worker" else 2)
    patient = probes if name in SERVICES else values(spec, "livenessProbe")
    assert all(each["timeoutSeconds"] >= 5 for each in patient)  # slow is not broken
    asked = values(probes, "httpGet")
    assert {each["port"] for each in asked} <= set(values(spec, "containerPort"))
    assert name != "registry" or {each["path"] for each in asked} == {"/v2/"}


@pytest.mark.parametrize("folder, workload", WORKLOADS)
def test_memory_limit_leaves_room_above_the_request(folder, workload):
    (resources,) = values(workload, "resources")
    mib = lambda each: int(each["memory"].removesuffix("Mi"))  # noqa: E731
    assert mib(resources["limits"]) >= 1.5 * mib(resources["requests"])


@pytest.mark.parametrize("name", SERVICES)
def test_rollouts_health_paths_and_grace_periods_are_as_documented(name):
    spec = load(f"{name}.yaml")[0]["spec"]
    gradual = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert spec["strategy"] == ({"type": "Recreate"} if name == "redis" else gradual)
    http = name in ("rng", "hasher", "webui")
    assert values(spec, "httpGet") == [{"path": "/healthz", "port": 80}] * 2 * http
    assert values(spec, "preStop") == [{"exec": {"command": ["sleep", "2"]}}] * http
    (seconds,) = values(spec, "terminationGracePeriodSeconds")
    assert seconds == 40 if name == "worker" else seconds <= 5
    assert COMPOSE["worker"]["stop_grace_period"] == "40s"


def test_requests_fit_a_small_node():
    pods = [values(load(f"{name}.yaml"), "resources")[0] for name in SERVICES]
    mib = lambda each: int(each["memory"].removesuffix("Mi"))  # noqa: E731
    assert sum(mib(each["requests"]) for each in pods) <= 384
    assert sum(int(each["requests"]["cpu"].removesuffix("m")) for each in pods) <= 500
