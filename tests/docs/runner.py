"""Takes the commands of a page of the course out of its Markdown, types them, and compares.

A fence ```sh holds commands, typed one after the other into one bash a page: folder, variables
and functions live on. A fence ```text directly after it promises their output: each line of it
must occur in the real output, in this order; a line `...` stands for any lines, `...` inside a
line for any text. Of what differs by nature any value of its kind will do, see KINDS. A command
that fails fails the page, unless what is promised speaks of an error.

What only looks (LOOKS) is repeated until the promise holds, as a reader would, for at most
PATIENCE seconds. Words behind ```sh that no reader sees:

- `node-2`: typed on the second node; the page says so
- `printed`: typed is the line printed by an earlier block that begins with the same two words
- `ctrl-c`: a command that does not end by itself is interrupted once its promise holds
"""

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass, replace

PATIENCE = 120  # seconds that what only looks is repeated: an autoscaler may take 60 and more
LONGEST = 300  # seconds until the commands end, or until a promise before Ctrl-C holds
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
    """Whatever it is."""
    return True


def within_5_percent(promised, real):
    """Rates."""
    return abs(float(real) - float(promised)) <= 0.05 * float(promised)


def as_slow(promised, real):
    """Times: those from 0.1 s on within 25 %, shorter ones at most five times as long."""
    first, second = (
        float(re.match(r"[\d.]+", t)[0]) * (1 if "ms" in t else 1000) for t in (promised, real)
    )
    return abs(second - first) <= 0.25 * first if first >= 100 else second <= 5 * first


K8S = "[bcdfghjklmnpqrstvwxz2456789]"  # what random names are made of: no vowels, so no words
KINDS = {  # what differs by nature: what it looks like, and which value keeps a promised one
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
        r"(?<![\w.])(?:\d+[smhdy])+\b"
        r"|(?:\d+|About an?|Less than a) (?:second|minute|hour|day|week)s?",
        any_value,
    ),
    "kubeadm's token": (r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", any_value),
    "id or hash": (r"\b[0-9a-f]{8,64}\b", any_value),
    "node port, not the registry's": (r"\b(?!30500)3[0-2]\d{3}\b", any_value),
    "decimal number": (r"(?<![\w.])\d+\.\d+(?![\w.])", within_5_percent),
}
KIND = re.compile("|".join(f"(?P<k{n}>{look})" for n, (look, _) in enumerate(KINDS.values())))


BLOCK = re.compile(
    r"^```sh(?P<words>.*)\n(?P<commands>(?:(?!```).*\n)*)```\n"
    r"(?:\n?```text\n(?P<promise>(?:(?!```).*\n)*)```\n)?",
    re.M,
)


@dataclass
class Block:
    """Commands of a page, where they are, what they promise, and how to run them."""

    line: int
    commands: str
    words: tuple
    promise: str

    @property
    def repeats(self):
        """Whether the commands do nothing but look."""
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
    """Tell whether a line of output keeps a promised line."""
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
    """Return the pattern of text that is promised as it is, but for `...`."""
    return re.escape(text).replace(r"\.\.\.", ".*").replace("…", ".*")


def broken(promise, output):
    """Return the first promised line that does not occur behind those before it, or None."""
    lines = iter(re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)))
    for promised in promise.splitlines():
        if promised.strip() not in ("", "...") and not any(
            line_holds(promised, real) for real in lines
        ):
            return promised
    return None


class Terminal:
    """A bash that commands are typed into, here or elsewhere, in a session that Ctrl-C reaches."""

    def __init__(self, *elsewhere):
        """Start bash, by a command such as `docker exec -i NODE` when elsewhere."""
        self.elsewhere = elsewhere
        self.bash = subprocess.Popen(
            [*elsewhere, "setsid", "--wait", "bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.said = b""
        threading.Thread(target=self.listen, daemon=True).start()
        self.write("exec 2>&1; trap : INT; trap 'failed=$?' ERR; failed=$$\n" + ENDED)
        assert self.wait(self.ended, 30), f"no bash: {self.output}"
        self.session = self.status

    def listen(self):
        """Collect what the commands say."""
        while chunk := os.read(self.bash.stdout.fileno(), 65536):
            self.said += chunk

    def write(self, line):
        """Hand a line to bash itself."""
        self.bash.stdin.write(line.encode())
        self.bash.stdin.flush()

    @property
    def output(self):
        """What the commands have said so far."""
        return self.said.decode(errors="replace").partition(f"\n{DONE}")[0]

    @property
    def status(self):
        """The exit status of the last command that failed, 0 if none did, None while they run."""
        done = re.search(rf"\n{DONE} (\d+)\n".encode(), self.said)
        return int(done[1]) if done else None

    def start(self, commands):
        """Type commands, which may not read what is typed."""
        self.said = b""
        self.write(f"failed=0; typed=$(cat <<'{DONE}'\n{commands}\n{DONE}\n)\n")
        self.write('eval "$typed" < /dev/null\n' + ENDED)

    def wait(self, condition, seconds):
        """Return whether the condition came true in time, while bash was there."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end and self.bash.poll() is None:
            time.sleep(0.05)
        return bool(condition())

    def ended(self):
        """Whether the commands have ended."""
        return self.status is not None

    def signal(self, name):
        """Send a signal to all that runs in the session's foreground."""
        kill = f"kill -{name} -- -{self.session}"
        subprocess.run([*self.elsewhere, "bash", "-c", kill], capture_output=True, check=False)

    def close(self):
        """End it and all that was started in it."""
        self.signal("KILL")
        self.bash.wait(30)


def keep(block, terminal):
    """Run the commands of a block once; return None when all is as promised, or what is not."""
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
        return f"did not come back in {LONGEST} s"
    elif terminal.status and not ERROR.search(block.promise):
        return f"exit status {terminal.status}"
    line = broken(block.promise, terminal.output)
    return None if line is None else f"promised, but not seen: {line}"


def run(page, terminal, substitutes=()):
    """Run a page and return its blocks; AssertionError says what went wrong.

    `terminal(name)` opens the terminal `node-1` or `node-2`. Of the pairs in `substitutes`, the
    second is typed and expected where the page has the first.
    """
    found, terminals, said = blocks(page.read_text()), {}, ""
    try:
        for block in found:
            name = "node-2" if "node-2" in block.words else "node-1"
            if name not in terminals:
                terminals[name] = terminal(name)
            if "printed" in block.words:
                block = replace(block, commands=printed(said, block.commands))
            for old, new in substitutes:
                commands, promise = (
                    text.replace(old, new) for text in (block.commands, block.promise)
                )
                block = replace(block, commands=commands, promise=promise)
            insist(block, terminals[name], page.name)
            said += terminals[name].output
        return found
    finally:
        for each in terminals.values():
            each.close()


def printed(said, command):
    """Return the last command in what was said that begins with the same two words."""
    first, second = command.split()[:2]
    lines = re.findall(rf"^{first} {second} (?:.*\\\n)*.*\n", said, re.M)
    assert lines, f"nothing printed begins with {first} {second}"
    return lines[-1]


def insist(block, terminal, page):
    """Run the commands of a block, again if they may be repeated, until it does what it says."""
    began = time.monotonic()
    while (
        (wrong := keep(block, terminal)) and block.repeats and time.monotonic() < began + PATIENCE
    ):
        time.sleep(0.5)
    where, said = f"{page}:{block.line}", terminal.output
    print(f"--- {where} ({time.monotonic() - began:.1f} s)\n{block.commands}{said}")
    assert not wrong, f"{where}: {wrong}\n{block.commands}--- said\n{said[-4000:]}"
