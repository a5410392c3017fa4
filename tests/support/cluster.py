"""A cluster whose nodes are containers of this machine, and copies of the application on it."""

import json
import os
import re
import subprocess
import tarfile
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

from support import wait_until

ROOT = Path(__file__).parents[2]
SERVICES = ("redis", "rng", "hasher", "webui", "worker")
SCALED = SERVICES[1:]
NODES = ("node1", "node2")
TAINT = "node-role.kubernetes.io/control-plane"
CHART_IS_LATE = 4  # seconds: webui shows a second when all workers have counted it
COPIES = []  # the copies of the application that exist now


def run(*command, timeout=120, stdin=None, **env):
    """Run a command in the repository and return its output; a failure shows the output."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, input=stdin, text=True, capture_output=True,
        timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def get(*args):
    """Return the parsed JSON output of `kubectl get`."""
    return json.loads(run("kubectl", "get", *args, "-o", "json"))


@contextmanager
def only(node):
    """Let new pods start on this node only; for node1, its taint must be removed first."""
    others = [name for name in NODES if name != node]
    run("kubectl", "cordon", *others)
    try:
        yield
    finally:
        run("kubectl", "uncordon", *others)


def taint(there=True):
    """Set the control plane's taint, as kubeadm does, or remove it."""
    effect = [":NoSchedule", "--overwrite"] if there else ["-"]
    names = run("kubectl", "get", "node", NODES[0], "-o", "jsonpath={.spec.taints[*].key}")
    if there or TAINT in names.split():
        run("kubectl", "taint", "node", NODES[0], TAINT + effect[0], *effect[1:])


def address_of(node):
    """Return the address of a node."""
    addresses = get("node", node)["status"]["addresses"]
    return next(each["address"] for each in addresses if each["type"] == "InternalIP")


def forget_images():
    """Remove the application's images from the nodes, so that they pull what was pushed last."""
    ours = "ctr -n k8s.io images ls -q | grep /dockercoins/ | xargs -r ctr -n k8s.io images rm"
    for node in NODES:
        run("docker", "exec", node, "bash", "-c", ours)


def is_ready(node):
    """Return whether a node is Ready."""
    conditions = get("node", node)["status"]["conditions"]
    return [each["status"] for each in conditions if each["type"] == "Ready"] == ["True"]


def processes(pod):
    """Return /proc/PID/status of a pod's processes but `pause`, with their PIDs on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if pod["metadata"]["uid"] in (path / "cgroup").read_text():
                lines = (path / "status").read_text().splitlines()
                status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
                found += [status | {"Pid": path.name}] if status["Name"] != "pause" else []
    return found


def logs_on_disk(node, namespace, app):
    """Return {pod: log} of a service, read from the disk of a node that may be down."""
    logs = {}
    command = ["docker", "cp", f"{node}:/var/log/pods", "-"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as copy,
        tarfile.open(fileobj=copy.stdout, mode="r|") as tar,
    ):
        for member in tar:
            found = re.search(f"/{namespace}_({app}-[^_]+)_.*log$", member.name)
            if found and member.isfile():
                logs[found[1]] = tar.extractfile(member).read().decode()
    return logs


class Copy:
    """A copy of the application in a namespace that enforces the Pod Security profile `enforce`.

    That namespace is the current one in its kubeconfig.
    """

    def __init__(self, namespace, kubeconfig, enforce="privileged"):
        self.namespace, self.env = namespace, {"KUBECONFIG": str(kubeconfig)}
        run("kubectl", "create", "namespace", namespace)
        label = f"pod-security.kubernetes.io/enforce={enforce}"
        run("kubectl", "label", "namespace", namespace, label)
        kubeconfig.write_text(run("kubectl", "config", "view", "--raw", "--flatten"))
        self.kubectl("config", "set-context", "--current", "--namespace", namespace)
        COPIES.append(self)

    def kubectl(self, *args, **options):
        """Run kubectl in the namespace of this copy and return what it prints."""
        return run("kubectl", *args, **options, **self.env)

    def environment(self):
        """Return the environment in which kubectl uses the namespace of this copy."""
        return os.environ | self.env

    def type(self, script, folder="/root/dockercoins", timeout=120):
        """Run commands on node 1, with kubectl in this namespace, and return their output."""
        config = f"/root/{self.namespace}.config"
        run("docker", "cp", self.env["KUBECONFIG"], f"node1:{config}")
        shell = ["docker", "exec", "-e", f"KUBECONFIG={config}", "-w", folder, "node1", "bash"]
        return run(*shell, "-ec", script, timeout=timeout)

    def remove(self):
        """Start deleting the namespace with everything in it."""
        COPIES.remove(self)
        run("kubectl", "delete", "namespace", self.namespace, "--wait=false")

    def report(self):
        """Return the pods, recent warnings and last log lines, for a failed test."""
        answers = []
        for asked in (
            ["get", "pods", "-o", "wide"],
            ["get", "events", "--field-selector", "type=Warning", "--sort-by", ".lastTimestamp"],
            *(["logs", "-l", f"app={service}", "--tail=3", "--prefix"] for service in SERVICES),
        ):
            command, env = ["kubectl", *asked], self.environment()
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
            answers += (done.stdout + done.stderr).splitlines()[-20:]
        return "\n".join(answers)

    def get(self, *args):
        """Return the parsed JSON output of `kubectl get` in the namespace."""
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def pods(self, app=None):
        """Return the pods of one service, or of all, except those that are being deleted."""
        pods = self.get("pods", *(["-l", f"app={app}"] if app else []))["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def names(self, app):
        """Return the names of a service's pods."""
        return {pod["metadata"]["name"] for pod in self.pods(app)}

    def nodes(self, app):
        """Return the nodes of a service's pods, one for each pod."""
        return sorted(pod["spec"].get("nodeName", "") for pod in self.pods(app))

    def restarts(self, app=None):
        """Return {pod: how often its container was restarted}."""
        return {
            pod["metadata"]["name"]: status["restartCount"]
            for pod in self.pods(app)
            for status in pod["status"].get("containerStatuses", [])
        }

    def settled(self, *apps, kind="deployment", timeout=120):
        """Wait until the rollouts of these services, or of all, are done."""
        for app in apps or SERVICES:
            wait = f"--timeout={timeout}s"
            self.kubectl("rollout", "status", kind, app, wait, timeout=timeout + 10)

    def scale(self, timeout=120, **replicas):
        """Scale services, `worker=10`, and wait until there are that many ready pods."""
        for app, count in replicas.items():
            self.kubectl("scale", "deployment", app, f"--replicas={count}")
        for app, count in replicas.items():
            self.settled(app, timeout=timeout)
            wait_until(
                lambda app=app, count=count: len(self.pods(app)) == count, 60, f"{count} of {app}"
            )

    def spread(self, **replicas):
        """Replace the pods of services with this many new ones on each node."""
        self.scale(**{app: 0 for app in replicas})
        with only("node1"):
            self.scale(**replicas)
        with only("node2"):
            self.scale(**{app: 2 * count for app, count in replicas.items()})

    def move(self, node, *apps):
        """Replace all pods of services with new ones on this node."""
        with only(node):
            self.kubectl("rollout", "restart", "deployment", *apps)
            self.settled(*apps)

    def url(self, path, node="node1"):
        """Return the address of a page of webui, on the node port."""
        port = self.get("service", "webui")["spec"]["ports"][0]["nodePort"]
        return f"http://{address_of(node)}:{port}{path}"

    def mining(self, than=0, timeout=60):
        """Wait until more than `than` hashes are counted, and return how many."""
        address = self.url("/json")
        return wait_until(
            lambda: (count := hashes(address) or 0) > than and count, timeout, f"over {than} hashes"
        )

    def rate(self, seconds):
        """Return the hashes/s of that many seconds from now on, as the chart shows them."""
        return self.best_rate(0, seconds)

    def best_rate(self, lowest, seconds, within=None):
        """Return the hashes/s, by the chart, of the first of three times that many seconds that
        reaches `lowest`, or the best of them: other load on the machine only lowers it.

        With `within`, it may be any that many seconds of the next `within` ones.
        """
        address, rates = self.url("/speed"), []
        begin = wait_until(lambda: int(json.loads(fetch(address))["now"]), 60, "an answer") + 1

        def reached():
            answer = json.loads(fetch(address))
            drawn = answer["speed"][begin - answer["start"] :]
            step = 1 if within else seconds
            parts = [drawn[i : i + seconds] for i in range(0, len(drawn) - seconds + 1, step)]
            rates[:] = [sum(part) / seconds for part in parts]
            return rates and max(rates) >= lowest

        with suppress(AssertionError):
            wait_until(reached, (within or 3 * seconds) + CHART_IS_LATE, f"{lowest} hashes/s")
        best = max(rates, default=0)
        print(f"{best:.2f} hashes/s over {seconds} s, the best of {len(rates)} such parts")
        return best


def fetch(address):
    """Return the body of a page, fetched on a new connection."""
    with urllib.request.urlopen(address, timeout=5) as answer:
        return answer.read()


def hashes(address):
    """Return the counter, or None if there is none."""
    try:
        return int(json.loads(fetch(address))["hashes"])
    except (OSError, TypeError):  # redis is unreachable, or has counted no hash yet
        return None


class Visitor(threading.Thread):
    """Requests /json of webui ten times a second and records each failure."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.asked, self.failures = address, 0, []
        self.leaving = threading.Event()

    def run(self):
        while not self.leaving.wait(0.1):
            self.asked += 1
            try:
                fetch(self.address)
            except OSError as error:
                self.failures.append(error)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.leaving.set()
        self.join()


class Terminations:
    """Measures how long each pod of a service takes from its deletion until its container exits.

    The exit is an event of containerd, as the kubelet may remove a pod without reporting it.
    """

    def __init__(self, copy, app):
        self.copy, self.app, self.ordered, self.ended = copy, app, {}, {}

    def __enter__(self):
        self.pod_of = {  # by the ID of its container
            pod["status"]["containerStatuses"][0]["containerID"]: pod["metadata"]["name"]
            for pod in self.copy.pods(self.app)
        }
        columns = '{.metadata.name} {.metadata.deletionTimestamp}{"\\n"}'
        pods = ["kubectl", "get", "pods", "-l", f"app={self.app}", "-w"]
        events = ["timeout", "200", "ctr", "-n", "k8s.io", "events"]
        self.streams = [self.follow(self.read_order, *pods, "-o", f"jsonpath={columns}")]
        for node in NODES:
            self.streams.append(self.follow(self.read_end, "docker", "exec", node, *events))
        wait_until(lambda: self.ordered, 30, "the watch lists the pods")
        return self

    def follow(self, read, *command):
        """Start a command and a thread that calls `read` with each line of its output."""
        env = self.copy.environment()
        stream = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        reader = threading.Thread(target=lambda: [read(line) for line in stream.stdout])
        reader.start()
        return stream, reader

    def read_order(self, line):
        """Record when a pod was deleted: Kubernetes itself reports that in whole seconds."""
        pod, deleted = line.rstrip("\n").split(" ")
        if not self.ordered.get(pod):
            self.ordered[pod] = deleted and time.time()

    def read_end(self, line):
        """Record when the container of a pod exited, and its exit code."""
        topic, _, event = line.partition(" {")
        if topic.endswith("/tasks/exit"):
            event = json.loads("{" + event)
            if pod := self.pod_of.get(f"containerd://{event['id']}"):
                self.ended[pod] = time.time(), event.get("exit_status", 0)

    def wait_for(self, pods):
        """Wait until these pods have exited, all with code 0, and return how long each took (s)."""
        wait_until(
            lambda: all(self.ordered.get(pod) and pod in self.ended for pod in pods), 60, "the exit"
        )
        assert {self.ended[pod][1] for pod in pods} == {0}  # 137 would be SIGKILL
        return [self.ended[pod][0] - self.ordered[pod] for pod in pods]

    def __exit__(self, *_):
        for stream, reader in self.streams:
            stream.terminate()
            stream.wait()
            reader.join()
