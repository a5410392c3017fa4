"""Runs the commands of a course page and compares their output with what the page promises.

A block ```sh holds commands. All blocks of a page run in one bash, so folder, variables and
functions are kept. A block ```text directly after it promises output: each of its lines must
occur in the real output, in this order; a line `...` stands for any lines, `...` inside a line
for any text. Values that vary between runs match any value of their kind, see KINDS. A failing
command fails the page, unless the promised output contains an error.

Commands that only read (LOOKS) are repeated until the output matches, as a reader would, for at
most PATIENCE seconds. Words after ```sh, which Markdown does not show:

- `node-2`: run on the second node, as the page tells the reader
- `printed`: run the line that an earlier block printed and that begins with the same two words
- `ctrl-c`: interrupt the command, which does not end by itself, once its output matches
"""

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, replace

PATIENCE = 120  # seconds to repeat commands that only read: an autoscaler may take over 60
LONGEST = 300  # seconds until commands end, or until their output matches before Ctrl-C
DONE = "__DONE__"
ENDED = f"printf '\\n{DONE} %s\\n' $failed\n"

LOOKS = re.compile(
    r"""(kubectl(\ (-n|--namespace)[ =]\S+)*\ (
        get|describe|logs|top|explain|version|rollout\ (status|history)|config\ get-contexts
        |exec\ .*\ --\ (curl|wget|nslookup|ping|cat|env))
    |docker(-compose|\ compose)?\ (ps|logs|images|stats|top|version|image\ ls)
    |curl|speed|query|time|cat|ls|grep|echo|sleep|seq|wait)\b
    |(for|while)\ .*|done\b.*|\w+=(\S*|\$\(.*\))$|\#.*""",
    re.X,
)
ERROR = re.compile(r"error|fail|refused|timed out|not found|no such|denied|exit code", re.I)


def any_value(promised, real):
    """Return True: any value matches."""
    return True


def as_fast(promised, real):
    """Return whether a rate is within 5 %."""
    return abs(float(real) - float(promised)) <= 0.05 * float(promised)


def as_slow(promised, real):
    """Return whether a time is close: within 25 % from 0.1 s on, else at most 5 times as long."""
    first, second = (
        float(re.match(r"[\d.]+", t)[0]) * (1 if "ms" in t else 1000) for t in (promised, real)
    )
    return abs(second - first) <= 0.25 * first if first >= 100 else second <= 5 * first


K8S = "[bcdfghjklmnpqrstvwxz2456789]"  # the characters of random names, which have no vowels
KINDS = {  # values that vary between runs: their pattern, and which one matches a promised one
    "date or time": (
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*(?:Z| ?[+-]\d\d:?\d\d)?"
        r"|\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d|\d\d:\d\d:\d\d",
        any_value,
    ),
    "IPv4 address": (r"\d+\.\d+\.\d+\.\d+", any_value),
    "end of a pod's name": (rf"(?<=[a-z0-9])-(?:{K8S}{{6,10}}-)?{K8S}{{5}}(?![\w-])", any_value),
    "end of a ReplicaSet's name": (rf"(?<=[a-z0-9])-{K8S}{{6,10}}(?![\w-])", any_value),
    "time it took": (r"\d+(?:\.\d+)? ?ms\b|\d+\.\d+ ?s(?:ec|econds?)?\b", as_slow),
    "age": (
        r"(?<![\w.\"])(?:\d+[smhdy])+\b"
        r"|(?:\d+|About an?|Less than a) (?:second|minute|hour|day|week)s?",
        any_value,
    ),
    "kubeadm's token": (r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", any_value),
    "id or hash": (r"\b[0-9a-f]{8,64}\b", any_value),
    "node port, not the registry's": (r"\b(?!30500)3[0-2]\d{3}\b", any_value),
    "decimal number": (r"(?<![\w.])\d+\.\d+(?![\w.])", as_fast),
}
KIND = re.compile("|".join(f"(?P<k{n}>{look})" for n, (look, _) in enumerate(KINDS.values())))


BLOCK = re.compile(
    r"^```sh(?P<words>.*)\n(?P<commands>(?:(?!```).*\n)*)```\n"
    r"(?:\n?```text\n(?P<promise>(?:(?!```).*\n)*)```\n)?",
    re.M,
)


@dataclass
class Block:
    """Commands of a page, their line, the words after ```sh, and their promised output."""

    line: int
    commands: str
    words: tuple
    promise: str

    @property
    def repeats(self):
        """Whether the commands only read and may be repeated."""
        parts = re.split(r"\n|;|&&|\|\||\bdo\b", self.commands.replace("\\\n", " "))
        return bool(self.promise) and all(
            LOOKS.match(part.strip()) for part in parts if part.strip()
        )


def blocks(text):
    """Return the blocks of a page."""
    return [
        Block(
            line=text.count("\n", 0, match.start("commands")) + 1,
            commands=match["commands"],
            words=tuple(match["words"].split()),
            promise=match["promise"] or "",
        )
        for match in BLOCK.finditer(text)
    ]


def line_holds(promised, real):
    """Return whether a line of output matches a promised line."""
    pattern, checks, end = "", [], 0
    promised = " ".join(promised.split())
    for match in KIND.finditer(promised):
        look, check = list(KINDS.values())[int(match.lastgroup[1:])]
        pattern += literal(promised[end : match.start()]) + f"({look})"
        checks.append((check, match[0]))
        end = match.end()
    found = re.fullmatch(pattern + literal(promised[end:]), " ".join(real.split()))
    values = found.groups() if found else ()
    return bool(found) and all(
        check(value, other) for (check, value), other in zip(checks, values, strict=True)
    )


def literal(text):
    """Return the pattern of promised text, in which `...` matches anything."""
    return re.escape(text).replace(r"\.\.\.", ".*").replace("…", ".*")


def broken(promise, output):
    """Return the first promised line that is missing after the ones before it, or None."""
    lines = iter(re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)))
    for promised in promise.splitlines():
        if promised.strip() not in ("", "...") and not any(
            line_holds(promised, real) for real in lines
        ):
            return promised
    return None


class Terminal:
    """A bash, here or on a node, in a session of its own that Ctrl-C can interrupt."""

    def __init__(self, *elsewhere):
        """Start bash, elsewhere by a command such as `docker exec -i NODE`."""
        self.elsewhere = elsewhere
        self.bash = subprocess.Popen(
            [*elsewhere, "setsid", "--wait", "bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.received = b""
        threading.Thread(target=self.listen, daemon=True).start()
        self.write("exec 2>&1; trap : INT; trap 'failed=$?' ERR; failed=$$\n" + ENDED)
        assert self.wait(self.ended, 30), f"no bash: {self.output}"
        self.session = self.status

    def listen(self):
        """Collect the output of the commands."""
        while chunk := os.read(self.bash.stdout.fileno(), 65536):
            self.received += chunk

    def write(self, line):
        """Send a line to bash."""
        self.bash.stdin.write(line.encode())
        self.bash.stdin.flush()

    @property
    def output(self):
        """The output of the commands so far."""
        return self.received.decode(errors="replace").partition(f"\n{DONE}")[0]

    @property
    def status(self):
        """The exit status of the last command that failed, 0 if none did, None while they run."""
        done = re.search(rf"\n{DONE} (\d+)\n".encode(), self.received)
        return int(done[1]) if done else None

    def start(self, commands):
        """Run commands, without a standard input."""
        self.received = b""
        self.write(f"failed=0; typed=$(cat <<'{DONE}'\n{commands}\n{DONE}\n)\n")
        self.write('eval "$typed" < /dev/null\n' + ENDED)

    def wait(self, condition, seconds):
        """Return whether the condition became true in time and while bash was running."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end and self.bash.poll() is None:
            time.sleep(0.05)
        return bool(condition())

    def ended(self):
        """Whether the commands have ended."""
        return self.status is not None

    def signal(self, name):
        """Send a signal to all processes of the session."""
        kill = f"kill -{name} -- -{self.session}"
        subprocess.run([*self.elsewhere, "bash", "-c", kill], capture_output=True, check=False)

    def close(self):
        """Kill bash and everything started in it."""
        self.signal("KILL")
        self.bash.wait(30)


def keep(block, terminal):
    """Run the commands of a block once; return None if all is as promised, else the difference."""
    terminal.start(block.commands)
    if "ctrl-c" in block.words:
        terminal.wait(
            lambda: terminal.ended() or not broken(block.promise, terminal.output),
            LONGEST,
        )
        early = terminal.ended()
        terminal.signal("INT")
        if not terminal.wait(terminal.ended, 30):
            return "Ctrl-C did not end it"
        if early:
            return f"ended by itself, with {terminal.status}"
    elif not terminal.wait(terminal.ended, LONGEST):
        return f"did not end within {LONGEST} s"
    elif terminal.status and not ERROR.search(block.promise):
        return f"exit status {terminal.status}"
    line = broken(block.promise, terminal.output)
    return None if line is None else f"promised, but not seen: {line}"


def run(page, terminal, substitutes=()):
    """Run a page and return its blocks, or raise AssertionError with the difference.

    `terminal(name)` opens the terminal `node-1` or `node-2`. `substitutes` are pairs (old, new),
    replaced in commands and in promised output.
    """
    found, terminals, earlier = blocks(page.read_text()), {}, ""
    try:
        for block in found:
            name = "node-2" if "node-2" in block.words else "node-1"
            if name not in terminals:
                terminals[name] = terminal(name)
            if "printed" in block.words:
                block = replace(block, commands=printed(earlier, block.commands))
            for old, new in substitutes:
                commands, promise = (
                    text.replace(old, new) for text in (block.commands, block.promise)
                )
                block = replace(block, commands=commands, promise=promise)
            insist(block, terminals[name], page.name)
            earlier += terminals[name].output
        return found
    finally:
        for each in terminals.values():
            each.close()


def printed(text, command):
    """Return the last command in the output `text` that begins with the same two words."""
    first, second = command.split()[:2]
    lines = re.findall(rf"^{first} {second} (?:.*\\\n)*.*\n", text, re.M)
    assert lines, f"nothing printed begins with {first} {second}"
    return lines[-1]


def insist(block, terminal, page):
    """Run the commands of a block, repeatedly if they only read, until the output matches."""
    began = time.monotonic()
    while (
        (wrong := keep(block, terminal)) and block.repeats and time.monotonic() < began + PATIENCE
    ):
        time.sleep(0.5)
    where, output = f"{page}:{block.line}", terminal.output
    print(f"--- {where} ({time.monotonic() - began:.1f} s)\n{block.commands}{output}")
    assert not wrong, f"{where}: {wrong}\n{block.commands}--- output\n{output[-4000:]}"
