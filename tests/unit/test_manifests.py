"""What the manifests in k8s/ promise, as far as it can be seen without a cluster."""

from itertools import product
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES = ("hasher", "redis", "rng", "webui", "worker")
FILES = sorted((ROOT / "k8s").rglob("*.yaml"))
KINDS = ("Deployment", "DaemonSet")


def load(path):
    """Return the objects of a manifest."""
    return [thing for thing in yaml.safe_load_all(path.read_text()) if thing]


def pick(path, kind):
    """Return the one object of `kind` in a manifest."""
    (thing,) = [thing for thing in load(path) if thing["kind"] == kind]
    return thing


def container_of(workload):
    """Return the one container of a Deployment or DaemonSet."""
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return container


OBJECTS = [pytest.param(o, id=f"{f.relative_to(ROOT / 'k8s')}:{o['kind']}/{o['metadata']['name']}")
           for f in FILES for o in load(f)]  # fmt: skip
WORKLOADS = [each for each in OBJECTS if each.values[0]["kind"] in KINDS]
DEPLOYED = {name: pick(ROOT / "k8s" / f"{name}.yaml", "Deployment") for name in SERVICES}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("version", ["1.27", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("thing", OBJECTS)
def test_manifest_is_valid_strictly(thing, version):
    kubernetes_validate.validate(thing, version, strict=True)


def test_the_directory_applies_all_five_services_and_nothing_else():
    assert sorted(path.name for path in (ROOT / "k8s").glob("*.y*ml")) == [f"{name}.yaml" for name in SERVICES]


@pytest.mark.parametrize("name", SERVICES)
def test_file_holds_a_deployment_and_but_for_worker_a_service(name):
    things = load(ROOT / "k8s" / f"{name}.yaml")
    assert [thing["kind"] for thing in things] == (["Deployment"] if name == "worker" else ["Deployment", "Service"])
    for thing in things:
        assert thing["metadata"] == {"name": name, "labels": {"app": name}}  # no namespace: it goes into any


@pytest.mark.parametrize("workload", WORKLOADS)
def test_selector_labels_and_container_carry_the_name(workload):
    name, spec = workload["metadata"]["name"], workload["spec"]
    assert workload["metadata"]["labels"] == {"app": name}
    assert spec["selector"] == {"matchLabels": {"app": name}}
    assert spec["template"]["metadata"]["labels"] == {"app": name}
    assert container_of(workload)["name"] == name
    assert "replicas" not in spec  # applied again, it would undo `kubectl scale`


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "worker"])
def test_service_leads_to_the_port_where_the_container_listens(name):
    spec, container = pick(ROOT / "k8s" / f"{name}.yaml", "Service")["spec"], container_of(DEPLOYED[name])
    assert spec["selector"] == {"app": name}
    (port,) = spec["ports"]
    assert port["port"] == (6379 if name == "redis" else 80)
    assert [port["targetPort"]] == [each["containerPort"] for each in container["ports"]]
    assert spec.get("type", "ClusterIP") == ("NodePort" if name == "webui" else "ClusterIP")
    assert "nodePort" not in port
    if name != "redis":
        assert container["env"] == [{"name": "PORT", "value": str(port["targetPort"])}]


@pytest.mark.parametrize("workload", WORKLOADS)
def test_probes_ask_the_port_where_the_container_listens(workload):
    container = container_of(workload)
    name = container["name"]
    for probe in [container[key] for key in ("livenessProbe", "readinessProbe") if key in container]:
        if "httpGet" in probe:
            assert probe["httpGet"]["port"] == container["ports"][0]["containerPort"]
            assert probe["httpGet"]["path"] == ("/v2/" if name == "registry" else "/healthz")
        else:
            assert name in ("redis", "worker")
    assert ("readinessProbe" in container) == (name != "worker")  # nobody asks a worker
    assert container["livenessProbe"].get("timeoutSeconds", 1) >= 5  # a crowded node is slow, not broken


@pytest.mark.parametrize("workload", WORKLOADS)
def test_pod_meets_the_restricted_profile(workload):
    pod = workload["spec"]["template"]["spec"]
    for forbidden in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers", "ephemeralContainers"):
        assert forbidden not in pod
    context, container = pod["securityContext"], container_of(workload)
    assert context["runAsNonRoot"] is True and context["runAsUser"] > 0 and context["runAsGroup"] > 0
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {kind for volume in pod.get("volumes", []) for kind in volume} <= {
        "name",
        "emptyDir",
        "persistentVolumeClaim",
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,  # more than the profile asks for, as is the next line
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


def mib(text):
    """Return a quantity like 48Mi in MiB."""
    assert text.endswith("Mi")
    return int(text[:-2])


def millicpu(text):
    """Return a quantity like 50m in thousandths of a CPU."""
    assert text.endswith("m")
    return int(text[:-1])


def test_all_requests_together_are_at_most_384_mib_and_500m():
    requests = [container_of(each)["resources"]["requests"] for each in DEPLOYED.values()]
    assert sum(mib(each["memory"]) for each in requests) <= 384
    assert sum(millicpu(each["cpu"]) for each in requests) <= 500


@pytest.mark.parametrize("workload", WORKLOADS)
def test_memory_has_a_limit_and_cpu_has_none(workload):
    resources = container_of(workload)["resources"]
    assert set(resources["limits"]) == {"memory"}
    assert mib(resources["limits"]["memory"]) >= 1.5 * mib(resources["requests"]["memory"])


@pytest.mark.parametrize("name", SERVICES)
def test_rollout_replaces_pods_as_promised(name):
    strategy, pod = DEPLOYED[name]["spec"]["strategy"], DEPLOYED[name]["spec"]["template"]["spec"]
    gradual = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
    assert strategy == ({"type": "Recreate"} if name == "redis" else gradual)
    assert pod["terminationGracePeriodSeconds"] <= 5
    if name in ("rng", "hasher", "webui"):
        assert container_of(DEPLOYED[name])["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "2"]}}}


@pytest.mark.parametrize("name", SERVICES)
def test_compose_file_and_manifests_name_the_same_image(name):
    image = COMPOSE[name]["image"].replace("${REGISTRY:-127.0.0.1:30500}", "127.0.0.1:30500")
    assert container_of(DEPLOYED[name])["image"] == image.replace("${TAG:-v1.0}", "v1.0")


@pytest.mark.parametrize("workload", WORKLOADS)
def test_image_is_pulled_only_where_it_is_missing(workload):
    container = container_of(workload)
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert ":" in container["image"].rpartition("/")[2]  # a tag


def test_registry_listens_where_the_image_names_say():
    path = ROOT / "k8s/registry/registry.yaml"
    service, deployment = pick(path, "Service"), pick(path, "Deployment")
    namespace = pick(path, "Namespace")["metadata"]["name"]
    assert service["metadata"]["namespace"] == deployment["metadata"]["namespace"] == namespace
    (port,) = service["spec"]["ports"]
    assert (service["spec"]["type"], port["nodePort"]) == ("NodePort", 30500)
    assert port["port"] == container_of(deployment)["ports"][0]["containerPort"]  # and so the targetPort


def test_daemonset_runs_the_same_rng_selected_by_the_same_service():
    daemonset = pick(ROOT / "k8s/rng-daemonset/rng.yaml", "DaemonSet")
    assert daemonset["metadata"] == DEPLOYED["rng"]["metadata"]
    assert daemonset["spec"]["template"] == DEPLOYED["rng"]["spec"]["template"]


def test_redis_volume_differs_in_its_volume_and_nothing_else():
    path = ROOT / "k8s/redis-volume/redis.yaml"
    deployment, claim = pick(path, "Deployment"), pick(path, "PersistentVolumeClaim")
    (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
    assert volume.pop("persistentVolumeClaim") == {"claimName": claim["metadata"]["name"]}
    volume["emptyDir"] = {}
    assert deployment == DEPLOYED["redis"]


# The network policies, by the rules of Kubernetes: a pod that no policy selects for a direction is open in it,
# otherwise one of the policies that select it must allow the connection; and both ends must agree.
POLICIES = [each for path in (ROOT / "k8s/network-policies").glob("*.yaml") for each in load(path)]
ARROWS = {("worker", "rng", 8080), ("worker", "hasher", 8080), ("worker", "redis", 6379), ("webui", "redis", 6379)}
PODS = (*SERVICES, "other")  # other: any other pod of the namespace
OUTSIDE = None  # pods of other namespaces, and people


def selects(selector, pod):
    """Tell whether a podSelector, {} or one with matchLabels, selects `pod`."""
    assert set(selector) <= {"matchLabels"}
    return all((key, value) == ("app", pod) for key, value in selector.get("matchLabels", {}).items())


def peer_matches(peer, pod):
    """Tell whether `pod`, of the same namespace or OUTSIDE, is the `peer` of a rule."""
    assert set(peer) == {"podSelector"}  # so: of the same namespace
    return pod is not OUTSIDE and selects(peer["podSelector"], pod)


def allows(direction, pod, other, port, protocol):
    """Tell whether the policies let `pod` talk in `direction` (Ingress, Egress) with `other` on `port`."""
    mine = [p["spec"] for p in POLICIES if direction in p["spec"]["policyTypes"]]
    mine = [spec for spec in mine if selects(spec["podSelector"], pod)]
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
    peers = "from" if direction == "Ingress" else "to"
    return not mine or any(
        ("ports" not in rule or any((p["port"], p.get("protocol", "TCP")) == (port, protocol) for p in rule["ports"]))
        and (peers not in rule or any(peer_matches(peer, other) for peer in rule[peers]))
        for rule in rules
    )


def connects(source, target, port, protocol="TCP"):
    """Tell whether `source` reaches `target`: both ends allow it. What is OUTSIDE has no policy of ours."""
    sends = source is OUTSIDE or allows("Egress", source, target, port, protocol)
    return sends and (target is OUTSIDE or allows("Ingress", target, source, port, protocol))


@pytest.mark.parametrize("source, target", list(product((*PODS, OUTSIDE), PODS)))
def test_network_policies_allow_what_the_diagram_shows_and_nothing_else(source, target):
    for port in (80, 6379, 8080):
        to_page = (target, port) == ("webui", 8080) and source is OUTSIDE
        assert connects(source, target, port) == ((source, target, port) in ARROWS or to_page)
        assert not connects(source, target, port, "UDP")


@pytest.mark.parametrize("source", PODS)
def test_network_policies_let_anyone_reach_webui_that_may_send_at_all(source):
    assert allows("Ingress", "webui", source, 8080, "TCP")


@pytest.mark.parametrize("source, protocol", list(product(PODS, ("UDP", "TCP"))))
def test_network_policies_let_those_that_look_up_names_ask_dns(source, protocol):
    assert connects(source, OUTSIDE, 53, protocol) == (source in ("worker", "webui"))
    assert not connects(source, OUTSIDE, 443, protocol)


def test_network_policies_of_one_copy_keep_out_the_pods_of_another():
    assert {target for target in PODS for port in (6379, 8080) if connects(OUTSIDE, target, port)} == {"webui"}


def test_network_policies_select_only_pods_that_exist_and_go_into_any_namespace():
    for policy in POLICIES:
        assert policy["metadata"].keys() == {"name"}
        assert policy["spec"]["podSelector"] == {} or policy["metadata"]["name"] in SERVICES
