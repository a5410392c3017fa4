"""Where the chapters run: a fresh clone, this machine's Docker, and the namespace `default` of a cluster."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from runner import run

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "docs").glob("[0-9]*.md"))
ADDRESS = re.compile(r"git clone (\S+)")
MADE = "deployments,daemonsets,jobs,pods,services,configmaps,horizontalpodautoscalers,networkpolicies"
GIVEN = {"service/kubernetes", "configmap/kube-root-ca.crt"}  # what the namespace has by itself
# The words in which a chapter says what it starts from, and how to get there when no chapter before it did.
START = "the application on the cluster"
PREPARE = """set -e
kubectl apply -f k8s/registry/
docker-compose build
kubectl -n registry rollout status deployment registry
docker-compose push
kubectl apply -f k8s/
for each in redis rng hasher webui worker; do kubectl rollout status deployment $each; done"""


def shell(command, env, folder=ROOT, timeout=300):
    """Return what a command prints; failing is an error that shows what it said."""
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


class Course:
    """The chapters, where they run, and what they leave behind. Only what they made is ever taken down."""

    def __init__(self, folder):
        """Run docs/README.md, which clones the repository: as it is here and now, whatever the address is."""
        self.blocks, self.cluster = [], os.environ.get("KUBECONFIG")
        mine = ("REGISTRY", "TAG", "DEBUG", "COMPOSE_FILE", "COMPOSE_PROJECT_NAME")
        self.env = {name: value for name, value in os.environ.items() if name not in mine and "_DELAY" not in name}
        self.env |= {"DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        if self.cluster:
            self.env["KUBECONFIG"] = str(folder / "kubeconfig")
            self.forget_namespace()
            self.namespaces = self.all_namespaces()
            assert not self.objects(), f"these in the namespace default would be taken down: {self.objects()}"
        label = "--filter label=com.docker.compose.project=dockercoins"
        found = shell(f"docker ps -aq {label} && docker volume ls -q {label}", self.env).split()
        assert not found, f"these of a project `dockercoins` would be taken down: {found}"

        git, index = f"git --git-dir={folder}/here.git --work-tree=.", ROOT / "docs/README.md"
        author = "-c user.name=test -c user.email=test@localhost -c core.hooksPath=/dev/null"
        shell(f"{git} init -q && {git} add -A && {git} {author} commit -qm here", self.env)
        (address,) = ADDRESS.findall(index.read_text())
        self.env |= {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{folder}/here.git.insteadOf"}
        self.env |= {"GIT_CONFIG_VALUE_0": address}
        self.folder, blocks = run(index, folder, self.env)
        self.blocks += blocks

    def play(self, chapter):
        """Run a chapter from what it starts from; when it fails, the next one starts afresh."""
        text = chapter.read_text()
        top = " ".join(text.partition("\n## ")[0].split())
        assert self.cluster or "kubectl" not in text, "KUBECONFIG must name the configuration of a cluster"
        try:
            if self.cluster:
                self.forget_namespace()
                if START in top and "deployment/worker" not in self.objects():
                    shell(PREPARE, self.env, self.folder)
            self.blocks += run(chapter, self.folder, self.env)[1]
        except BaseException:
            self.sweep()
            raise

    def sweep(self):
        """Take everything down."""
        shell("git checkout -q . && docker-compose down -v --remove-orphans -t 5", self.env, self.folder)
        if self.cluster:
            self.forget_namespace()
            if ours := self.objects() + sorted(self.all_namespaces() - self.namespaces):
                self.kubectl("delete", "--ignore-not-found", "--timeout=150s", *ours)

    def kubectl(self, *args):
        """Return the words that kubectl prints."""
        return shell(" ".join(("kubectl", *args)), self.env).split()

    def forget_namespace(self):
        """Begin with the cluster's configuration as it is: a chapter may change the current namespace."""
        shutil.copy(self.cluster, self.env["KUBECONFIG"])

    def all_namespaces(self):
        """Return the names of the cluster's namespaces."""
        return set(self.kubectl("get", "namespaces", "-o", "name"))

    def objects(self):
        """Return what is there in the namespace default of what the chapters make."""
        found = json.loads(shell(f"kubectl get {MADE} -o json", self.env))["items"]
        found = [each for each in found if "deletionTimestamp" not in each["metadata"]]
        return [name for each in found if (name := f"{each['kind']}/{each['metadata']['name']}".lower()) not in GIVEN]


COURSES = []


@pytest.fixture(scope="session")
def course(tmp_path_factory):
    """The course, and in the end nothing of it is left."""
    COURSES.append(Course(tmp_path_factory.mktemp("course")))
    yield COURSES[0]
    COURSES[0].sweep()


def pytest_terminal_summary(terminalreporter):
    """Say how much was run, and what was not for which need."""
    for course in COURSES:
        needs = Counter(block.needs for block in course.blocks)
        terminalreporter.write_line(f"blocks of commands that were run: {needs.pop('', 0)}")
        for need, count in sorted(needs.items()):
            terminalreporter.write_line(f"not run, {count} that need {need}")
