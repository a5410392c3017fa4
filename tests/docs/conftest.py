"""Where the chapters run: two nodes as on Play with Kubernetes, with a clone on the first."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from runner import Terminal, blocks, run
from support.cluster import forget_images

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "docs").glob("[0-9]*.md"))
CLUSTER = "03-cluster"  # the chapter that makes the cluster
ADDRESS = re.compile(r"git clone (\S+)")
KINDS = (
    "deployments,daemonsets,jobs,pods,services,configmaps,horizontalpodautoscalers,networkpolicies"
)
GIVEN = {"service/kubernetes", "configmap/kube-root-ca.crt"}  # what every namespace has
SERVICES = ("hasher", "redis", "rng", "webui")
APPLICATION = {f"service/{each}" for each in SERVICES} | {
    f"deployment/{each}" for each in (*SERVICES, "worker")
}
# The nodes cannot reach the internet, so these use local files or older images instead.
SUBSTITUTES = [
    (
        "https://github.com/weaveworks/weave/releases/download/v2.8.1/weave-daemonset-k8s-1.11.yaml",
        "~/flat-network.yaml",
    ),
    ("weave-net", "flat-network"),
    (
        "https://github.com/kubernetes-sigs/metrics-server/releases/download/v0.7.2/components.yaml",
        "file:///root/metrics-server.yaml",
    ),
    (  # see the head of k8s/prometheus/prometheus.yaml
        "kubectl apply -f k8s/prometheus/",
        "sed -s 's/prometheus:v3.*/prometheus:v2.53.3/; s/exporter:v0.*/exporter:v0.26.0/;"
        " s/exporter:v1.*/exporter:v1.69.0/; $a ---' k8s/prometheus/*.yaml | kubectl apply -f -",
    ),
]
# A pod may be terminating for a minute, and must not be among those of the next chapter.
GONE = "kubectl wait --for=delete pod --all --timeout=150s"
APPLIED, EMPTY = "the application on the cluster", "empty cluster"  # where chapters start from
EITHER_WAY = "deployed either way"  # from files or by hand: the chapter runs with both
CASES = [
    pytest.param(each, by_hand, id=each.stem + by_hand * "-by-hand")
    for each in CHAPTERS
    for by_hand in ([False, True] if EITHER_WAY in each.read_text() else [False])
]
APPLY = """set -e
kubectl apply -f k8s/registry/
docker-compose build
kubectl -n registry rollout status deployment registry --timeout=60s
docker-compose push
kubectl apply -f k8s/
for each in redis rng hasher webui worker; do
  kubectl rollout status deployment $each --timeout=60s
done"""
BY_HAND = ROOT / "docs/05-dockercoins.md", re.compile("^ *kubectl (create dep|expose)", re.M)
TAINT = "node-role.kubernetes.io/control-plane"
TAINTED = ("04-kubectl", "05-dockercoins", "06-scaling")  # the chapters that begin with the taint


def shell(*command, typed="", timeout=600):
    """Run a command and return its output; a failure shows the output."""
    done = subprocess.run(
        command, input=typed, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not done.returncode, f"{' '.join(command)} {typed}: {done.stdout}{done.stderr}"
    return done.stdout


def kubeadm_up(*words):
    """Run the testbed's kubeadm-up, which compiles Kubernetes the first time."""
    shell(f"{os.environ['TESTBED']}/kubeadm-up", *words, timeout=1800)


class Course:
    """Runs the chapters on the nodes and checks the state that each leaves behind."""

    def __init__(self, folder, blank):
        """Create the nodes, blank or with a cluster, and clone the code as in docs/README.md."""
        self.passed = False  # the previous chapter; if not, the state of the cluster is unknown
        kubeadm_up(*(["nodes"] if blank else []))
        if not blank:
            forget_images()
        git = ["git", f"--git-dir={folder}/here.git", f"--work-tree={ROOT}"]
        author = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        shell(*git, "init", "-q")
        shell(*git, "-C", ROOT, "add", "-A")
        shell(*git, *author, "-c", "core.hooksPath=/dev/null", "commit", "-qm", "here")
        shell("docker", "exec", "node1", "rm", "-rf", "here.git", "dockercoins")
        shell("docker", "cp", f"{folder}/here.git", "node1:/root/here.git")
        (address,) = ADDRESS.findall((ROOT / "docs/README.md").read_text())
        here = f'git config --global --replace-all url./root/here.git.insteadOf "{address}"'
        shell("docker", "exec", "node1", "sh", "-c", here)
        # As on Play with Kubernetes.
        shell(
            "docker",
            "exec",
            "node1",
            "ln",
            "-sf",
            "docker-compose-1.21",
            "/usr/local/bin/docker-compose",
        )
        self.blocks = self.run(ROOT / "docs/README.md", "/root")

    def run(self, page, folder="/root/dockercoins"):
        """Run a page in a folder of node 1, and in the home folder of node 2."""

        def terminal(name):
            where = ["-w", folder, "node1"] if name == "node-1" else ["node2"]
            return Terminal("docker", "exec", "-i", *where)

        return run(page, terminal, SUBSTITUTES)

    def play(self, chapter, by_hand):
        """Run a chapter from the state it starts from, and check the state it ends with."""
        top = " ".join(chapter.read_text().partition("\n## ")[0].split())
        start, _, end = top.partition("**You end with**")
        if chapter.stem != CLUSTER and "kubectl" in chapter.read_text():
            retainted = self.taint(chapter.stem in TAINTED)
            known = self.passed and self.applied() and (by_hand or not retainted)
            if APPLIED in start and not known:
                self.sweep()
                self.node(APPLY)
            if by_hand:
                self.deploy_by_hand()
            if EMPTY in start and self.objects():
                self.sweep()
        self.passed = False
        self.blocks += self.run(chapter)
        if chapter.stem == CLUSTER:
            kubeadm_up("config")  # so that kubectl on this machine works, too
        if end.lstrip().startswith("the same"):
            end += start
        promised = {words: holds for words, holds in self.states().items() if words in end}
        assert promised, f"{chapter.name} must say what one ends with"
        for words, holds in promised.items():
            assert holds(), f"{chapter.name} does not end with {words}, but {self.objects()}"
        self.passed = True

    def states(self):
        """Return {words with which chapters describe a state: function that checks it}."""
        return {
            APPLIED: self.applied,
            EMPTY: lambda: not self.objects(),
            "five stopped containers": lambda: (
                len(self.node("docker ps -aq -f status=exited").split()) == 5
            ),
            "nothing running": lambda: not self.node("docker-compose ps -q"),
            "a Kubernetes cluster of two nodes": lambda: (
                self.node("kubectl get nodes --no-headers").count(" Ready ") == 2
            ),
            "without the taint": lambda: TAINT not in self.taints(),
            "a metrics server": lambda: self.node("kubectl top nodes"),
        }

    def taints(self):
        """Return the taints of node 1."""
        return self.node("kubectl get node node1 -o jsonpath='{.spec.taints}'")

    def taint(self, tainted):
        """Set the control plane's taint on node 1 or remove it; return whether it is new."""
        taints = self.taints()
        if (TAINT in taints) != tainted:
            self.node(f"kubectl taint nodes node1 {TAINT}{':NoSchedule' if tainted else '-'}")
        return tainted and TAINT not in taints

    def deploy_by_hand(self):
        """Deploy the application again, by the kubectl commands of a chapter."""
        chapter, look = BY_HAND
        typed = [b.commands for b in blocks(chapter.read_text()) if look.search(b.commands)]
        self.node(f"kubectl delete -f k8s/ && {GONE} && set -e\n" + "\n".join(typed))
        self.node("kubectl wait --for=condition=Available deployment --all --timeout=60s")

    def node(self, commands):
        """Run commands in the clone on node 1 and return their output."""
        return shell(
            "docker", "exec", "-i", "-w", "/root/dockercoins", "node1", "bash", typed=commands
        )

    def sweep(self):
        """Remove what the previous chapter left behind."""
        self.node("git checkout -q . && docker-compose down -v --remove-orphans -t 5")
        self.node("kubectl config set-context --current --namespace=default")
        namespaces = set(self.node("kubectl get namespaces -o name").split())
        ours = namespaces & {f"namespace/{each}" for each in ("green", "blue", "dockercoins")}
        if ours := self.objects() | ours:
            delete = f"kubectl delete --ignore-not-found --timeout=150s {' '.join(ours)}"
            self.node(f"{delete} && {GONE}")

    def objects(self):
        """Return {kind/name} of the objects in the namespace default that chapters create."""
        found = json.loads(self.node(f"kubectl get {KINDS} -o json"))["items"]
        found = [each["metadata"] | {"kind": each["kind"].lower()} for each in found]
        return {
            f"{each['kind']}/{each['name']}"
            for each in found
            if "deletionTimestamp" not in each and "ownerReferences" not in each
        } - GIVEN

    def applied(self):
        """Return whether the application is deployed as in k8s/, and nothing else."""
        container = ".spec.template.spec.containers[0]"
        spec = f"{{.spec.replicas}} {{{container}.image}} {{{container}.env}}"
        path = f"{{range .items[*]}}{spec}{{'\\n'}}{{end}}"
        found = self.node(f'kubectl get deployments -o jsonpath="{path}"').splitlines()
        as_in_k8s = re.compile(r"1 (redis:\S+|\S+/dockercoins/\w+:v[\d.]+) ")
        return self.objects() == APPLICATION and all(map(as_in_k8s.fullmatch, found))


COURSES = []


@pytest.fixture(scope="session")
def course(request, tmp_path_factory):
    """The course, on blank nodes if the chapter that creates the cluster is among the tests."""
    if "TESTBED" not in os.environ:
        needed = "the chapters run on two nodes: TESTBED must name the folder of kubeadm-up"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(needed)
    blank = any(CLUSTER in each.name for each in request.session.items)
    COURSES.append(Course(tmp_path_factory.mktemp("course"), blank))
    return COURSES[0]


def pytest_terminal_summary(terminalreporter):
    """Print how many blocks of commands were run."""
    for course in COURSES:
        terminalreporter.write_line(f"blocks of commands that were run: {len(course.blocks)}")
