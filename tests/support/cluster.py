"""What the tests ask of a cluster: kubectl in a namespace, the numbers of webui, and waits on conditions."""

import json
import os
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

from support import wait_until

ROOT = Path(__file__).parents[2]
SERVICES = ("redis", "rng", "hasher", "webui", "worker")
COPIES = []  # of the application, while they are there
REMOVED = []  # namespaces on their way out


def run(*command, timeout=120, **env):
    """Return what a command prints, run in the clone; failing is an error that shows what it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def remove(namespace):
    """Have a namespace deleted with all that is in it, at once; wait_until_gone() waits for it."""
    run("kubectl", "delete", "namespace", namespace, "--wait=false")
    run(
        "kubectl",
        "delete",
        "pods",
        "--all",
        "--namespace",
        namespace,
        "--force",
        "--grace-period=0",
        "--wait=false",
    )
    REMOVED.append(namespace)


def wait_until_gone():
    """Wait until the removed namespaces are gone, and the last process of their pods has ended."""
    names = [f"namespace/{name}" for name in REMOVED]
    wait_until(
        lambda: not run("kubectl", "get", "--ignore-not-found", *names),
        f"{names} gone",
        timeout=150,
    )
    for name in REMOVED:
        pods = ["docker", "ps", "-q", "--filter", f"label=io.kubernetes.pod.namespace={name}"]
        wait_until(lambda pods=pods: not run(*pods), f"containers of {name} gone")


class Copy:
    """A copy of the application in a namespace; its kubeconfig has that namespace as the current one."""

    def __init__(self, namespace, kubeconfig):
        self.namespace, self.env = namespace, {"KUBECONFIG": str(kubeconfig)}
        run("kubectl", "create", "namespace", namespace)
        kubeconfig.write_text(run("kubectl", "config", "view", "--raw", "--flatten"))
        self.kubectl("config", "set-context", "--current", "--namespace", namespace)
        COPIES.append(self)

    def kubectl(self, *args, timeout=120):
        """Run kubectl in the namespace of this copy and return what it prints."""
        return run("kubectl", *args, timeout=timeout, **self.env)

    def remove(self):
        """Have the namespace deleted with all that is in it."""
        COPIES.remove(self)
        remove(self.namespace)

    def report(self):
        """Return, for a test that failed: the pods, the last warnings, and the last words of each service."""
        answers = []
        for asked in (
            ["get", "pods", "-o", "wide"],
            ["get", "events", "--field-selector", "type=Warning", "--sort-by", ".lastTimestamp"],
            *(["logs", "-l", f"app={service}", "--tail=3", "--prefix"] for service in SERVICES),
        ):
            env = os.environ | self.env
            said = subprocess.run(
                ["kubectl", *asked], env=env, capture_output=True, text=True, timeout=60
            )
            answers += (said.stdout + said.stderr).splitlines()[-20:]
        return "\n".join(answers)

    def get(self, *args):
        """Return what `kubectl get` gives, as objects."""
        return json.loads(self.kubectl("get", *args, "-o", "json"))

    def pods(self, app=None):
        """Return the pods, those of one service or all, without those that are on their way out."""
        pods = self.get("pods", *(["-l", f"app={app}"] if app else []))["items"]
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def names(self, app):
        """Return the names of a service's pods."""
        return {pod["metadata"]["name"] for pod in self.pods(app)}

    def process(self, app, pod):
        """Return the process id on the node, which must be this machine, of the container of a pod."""
        found = run(
            "docker",
            "ps",
            "-q",
            "-f",
            f"label=io.kubernetes.pod.name={pod}",
            "-f",
            f"name=k8s_{app}_",
        )
        return int(run("docker", "inspect", "-f", "{{.State.Pid}}", found.strip()))

    def restarts(self, app=None):
        """Return how often each container was restarted, by its pod's name."""
        return {
            pod["metadata"]["name"]: status["restartCount"]
            for pod in self.pods(app)
            for status in pod["status"].get("containerStatuses", [])
        }

    def settled(self, app, timeout=120):
        """Wait until a rollout of `app` is done."""
        kind = "daemonset" if app == "rng-daemonset" else "deployment"
        name = app.removesuffix("-daemonset")
        self.kubectl("rollout", "status", kind, name, f"--timeout={timeout}s", timeout=timeout + 10)

    def scale(self, timeout=120, **replicas):
        """Scale services, `worker=10`, and wait until there are that many ready pods and no others."""
        for app, count in replicas.items():
            self.kubectl("scale", "deployment", app, f"--replicas={count}")
        for app, count in replicas.items():
            self.settled(app, timeout)
            wait_until(
                lambda app=app, count=count: len(self.pods(app)) == count,
                f"{count} pods of {app}",
            )

    def url(self, path):
        """Return the address of a page of webui, on the node port."""
        port = self.get("service", "webui")["spec"]["ports"][0]["nodePort"]
        addresses = self.get("nodes")["items"][0]["status"]["addresses"]
        host = next(each["address"] for each in addresses if each["type"] == "InternalIP")
        return f"http://{host}:{port}{path}"

    def mining(self, than=0, timeout=60):
        """Wait until more than `than` units are counted, and return how many."""
        address = self.url("/json")
        return wait_until(
            lambda: (n := hashes(address)) is not None and n > than and n, "mining", timeout
        )

    def rate(self, seconds):
        """Return hashes/s from a step of the counter to the first one at least `seconds` later."""
        address = self.url("/json")
        started, first = step(address)
        while True:
            at, count = step(address)
            if at - started >= seconds:
                return (count - first) / (at - started)

    def best_rate(self, lowest, seconds):
        """Return the first of three rates that is above `lowest`, or the best: noise on the machine only lowers it."""
        rates = []
        while len(rates) < 3 and max(rates, default=0) < lowest:
            rates.append(self.rate(seconds))
        print(f"rates over {seconds} s:", *(f"{rate:.2f}" for rate in rates))
        return max(rates)


def fetch(address):
    """Return the body of a page, asked for on a connection of its own."""
    with urllib.request.urlopen(address, timeout=5) as answer:
        return answer.read()


def hashes(address):
    """Return the counter, or None when there is no number."""
    try:
        return int(json.loads(fetch(address))["hashes"])
    except (OSError, TypeError):  # redis away, or no hash yet
        return None


def step(address):
    """Wait for the next step of the counter, at most 30 s, and return when it was seen and what it says."""
    before, end = hashes(address), time.monotonic() + 30
    while (now := hashes(address)) == before or now is None:
        assert time.monotonic() < end, "the counter stands still"
        time.sleep(0.02)
    return time.monotonic(), now


class Visitor(threading.Thread):
    """Asks webui for /json ten times a second, and remembers each answer that did not come."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.asked, self.failures, self.leaving = address, 0, [], threading.Event()

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


class Departures:
    """Watches pods go: how long each took from the order to terminate until its container had ended, by itself.

    The end is Docker's word, for the kubelet of Kubernetes 1.20.2 keeps any pod listed for a minute more.
    """

    def __init__(self, copy, app):
        self.ordered, self.ended, self.app, self.copy = {}, {}, app, copy

    def __enter__(self):
        columns = '{.metadata.name} {.metadata.deletionTimestamp}{"\\n"}'
        watch = [
            "kubectl",
            "get",
            "pods",
            "-l",
            f"app={self.app}",
            "--watch",
            "-o",
            f"jsonpath={columns}",
        ]
        words = "{{.Actor.Attributes.name}} {{.TimeNano}} {{.Actor.Attributes.exitCode}}"
        events = ["docker", "events", "--filter", "event=die", "--format", words]
        env = os.environ | self.copy.env
        self.streams = [
            subprocess.Popen(each, env=env, stdout=subprocess.PIPE, text=True)
            for each in (watch, events)
        ]
        for stream, read in zip(self.streams, (self.order, self.end), strict=True):
            threading.Thread(
                target=lambda stream=stream, read=read: [
                    read(*line.split()) for line in stream.stdout
                ]
            ).start()
        wait_until(lambda: self.ordered, "the list that the watch begins with")
        return self

    def order(self, pod, deletion=None):
        """Note when a pod was told to terminate, or that it was not yet."""
        if not self.ordered.get(pod):
            self.ordered[pod] = time.time() if deletion else None

    def end(self, container, nanoseconds, code):
        """Note when a container ended, and how; the kubelet names it k8s_CONTAINER_POD_NAMESPACE_UID_RESTARTS."""
        parts = container.split("_")
        if parts[:2] == ["k8s", self.app]:
            self.ended[parts[2]] = int(nanoseconds) / 1e9, code

    def wait_for(self, pods):
        """Wait until all these pods have ended, with exit code 0, and return how long each took."""
        wait_until(
            lambda: all(self.ordered.get(pod) and pod in self.ended for pod in pods),
            f"{pods} ended",
        )
        assert {self.ended[pod][1] for pod in pods} == {
            "0"
        }  # 137 would be SIGKILL, after the grace period
        return [self.ended[pod][0] - self.ordered[pod] for pod in pods]

    def __exit__(self, *_):
        for stream in self.streams:
            stream.terminate()
            stream.wait()
