"""The course without containers: its pages are consistent, and its runner finds wrong output."""

import re
from pathlib import Path

import pytest

from docs import runner

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHAPTERS = sorted(path.name for path in DOCS.glob("[0-9]*.md"))
PAGES = sorted(DOCS.rglob("*.md"))
LINKING = [*PAGES, *ROOT.glob("README*.md"), ROOT / "k8s/README.md"]


def name(path):
    """Return the path of a page in the repository."""
    return str(path.relative_to(ROOT))


def headings(page):
    """Return the anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page):
    """Return the commands of a page and their promised output."""
    return [(b.commands, b.words, b.promise) for b in runner.blocks(page.read_text())]


def test_course_has_ten_chapters():
    assert [chapter[:2] for chapter in CHAPTERS] == [f"{n:02}" for n in range(1, 11)]


@pytest.mark.parametrize("chapter", ["README.md", *CHAPTERS])
def test_both_languages_have_the_same_commands_and_promises(chapter):
    assert commands(DOCS / chapter) == commands(DOCS / "es" / chapter)


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_no_link_inside_the_repository_is_broken(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in headings(there), target


def test_clone_url_is_written_once_in_each_language():
    clones = [page for page in PAGES for _ in re.findall(r"git clone", page.read_text())]
    assert sorted(clones) == sorted([DOCS / "README.md", DOCS / "es/README.md"])


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("language", [".", "es"])
def test_chapter_asks_at_least_four_questions_and_folds_the_answers(language, chapter):
    text = (DOCS / language / chapter).read_text()
    folded = re.findall(r"^<details>(.*?)^</details>$", text, re.S | re.M)
    assert len(folded) == text.count("<details>") >= 4
    question = r"<summary>(?:Question|Pregunta): [^?]+\?[^\n]*</summary>\n\n.+\n"
    assert [each for each in folded if not re.fullmatch(question, each, re.S)] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_output_follows_a_block_of_commands(page):
    text = page.read_text()
    assert text.count("\n```text\n") == sum(bool(block.promise) for block in runner.blocks(text))
    assert len(re.findall(r"^```sh", text, re.M)) == len(runner.blocks(text))
    words = {word for block in runner.blocks(text) for word in block.words}
    assert words <= {"node-2", "printed", "ctrl-c"}


@pytest.mark.parametrize(
    "promised, real",
    [
        ("3.3 hashes/second", "3.4 hashes/second"),
        ("3.3 hashes/second", "3.2 hashes/second"),
        ("9.8 hashes/second", "10.0 hashes/second"),
        ("rng-6d5f8c9b7-x2x4q   1/1  Running   0   12s", "rng-7c4d9bf6f8-9zlkp 1/1 Running 0 3m4s"),
        ("rng-x2x4q   1/1   Running", "rng-9zlkp   1/1   Running"),
        ("replicaset.apps/rng-6d5f8c9b7", "replicaset.apps/rng-7c4d9bf6f8"),
        (
            "webui   NodePort   10.96.0.17   <none>   80:31234/TCP   1s",
            "webui NodePort 10.0.0.9 <none> 80:30999/TCP 1d",
        ),
        ("connected to rng:80, seq=0 time=737.0 ms", "connected to rng:80, seq=0 time=800.12 ms"),
        ("connected to hasher:80, seq=0 time=2.0 ms", "connected to hasher:80, seq=0 time=0.9 ms"),
        ("0.70 s", "0.81 s"),
        ("Up 3 seconds", "Up About a minute"),
        (
            '::ffff:172.18.0.5 - - [23/Nov/2026:14:00:00 +0000] "GET /32',
            '::ffff:10.1.0.9 - - [01/Dec/2027:00:00:09 +0000] "GET /32',
        ),
        ("Coin found: 0abc1234...", "Coin found: 0123abcd..."),
        ("Creating rng_1 ... done", "Creating rng_1    ... \x1b[32mdone\x1b[0m"),
        ("Image: 127.0.0.1:30500/rng:v1.0", "  Image:   127.0.0.1:30500/rng:v1.0"),
    ],
)
def test_values_that_vary_between_runs_match(promised, real):
    assert runner.broken(promised, real) is None


@pytest.mark.parametrize(
    "promised, real",
    [
        ("3.3 hashes/second", "3.6 hashes/second"),
        ("3.3 hashes/second", "2.7 hashes/second"),
        ("3.3 hashes/second", "13.3 hashes/second"),
        ("9.8 hashes/second", "9.8 hashes/minute"),
        ("3.3 hashes/second", "3.3 hashes/second and more"),
        ("rng-6d5f8c9b7-x2x4q   1/1   Running", "rng-6d5f8c9b7-x2x4q   0/1   Running"),
        ("rng-6d5f8c9b7-x2x4q   1/1   Running", "worker-6d5f8c9b7-x2x4q   1/1   Running"),
        ("rng-6d5f8c9b7-x2x4q   1/1   Running", "rng-hasher   1/1   Running"),
        ("webui   80:31234/TCP", "webui   80/TCP"),
        ("Image: 127.0.0.1:30500/rng:v1.0", "Image: 127.0.0.1:30501/rng:v1.0"),
        ("Image: 127.0.0.1:30500/rng:v1.0", "Image: 127.0.0.1:30500/rng:other"),
        ("time=737.0 ms", "time=500.0 ms"),
        ("time=2.0 ms", "time=11.0 ms"),
        ("4 units of work done", "5 units of work done"),
        ("rng   2/2", "rng   1/2"),
        ('{"cpu":"50m"}', '{"cpu":"70m"}'),
    ],
)
def test_different_output_does_not_match(promised, real):
    assert runner.broken(promised, real) == promised


@pytest.mark.parametrize(
    "promise, missing", [("a\nb\n", None), ("a\n...\nc\n", None), ("b\na\n", "a"), ("a\na", "a")]
)
def test_promised_lines_must_occur_in_order(promise, missing):
    assert runner.broken(promise, "a\nx\nb\nc\n") == missing


def sh(commands, promise="", words=""):
    """Return the code blocks of commands and of their promised output."""
    return f"```sh {words}\n{commands}\n```\n\n" + f"```text\n{promise}\n```\n\n" * bool(promise)


GOOD = {
    "state is kept": sh("cd /\nX=1") + sh("echo $PWD $X", "/ 1"),
    "function": sh("f() {\n  echo $1 >&2\n}") + "So:\n\n" + sh("f hello", "hello"),
    "promised error": sh("ls /nowhere", "ls: ... No such file or directory"),
    "ctrl-c": sh("echo up; sleep 60", "up", "ctrl-c") + sh("echo on", "on"),
    "second node": sh("X=1") + sh("echo on $X", "on", "node-2"),
    "printed": sh("echo 'echo X 1 \\\n 2'") + sh("echo X ...", "X 1 2", "printed"),
    "repeated": sh("(sleep 0.7; echo 1 > it) > /dev/null &") + sh("cat it", "1"),
}
BAD = {
    "failure": (sh("false\ntrue"), "page.md:2: exit status 1"),
    "output": (sh("echo 3.3", "10.0"), "promised, but not seen: 10.0"),
    "failure after output": (sh("echo yes; false", "yes"), "exit status 1"),
    "endless": (sh("sleep 60"), "did not end within 2 s"),
    "ctrl-c": (sh("sleep 60", "up", "ctrl-c"), "promised, but not seen: up"),
    "end before ctrl-c": (sh("true", "up", "ctrl-c"), "ended by itself, with 0"),
    "exit": (sh("exit 3"), "did not end within 2 s"),
    "run once": (sh("touch here\necho $((N += 1))", "2"), "promised, but not seen: 2"),
}


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A function that runs a page with this text, with short timeouts."""
    monkeypatch.setattr(runner, "PATIENCE", 2)
    monkeypatch.setattr(runner, "LONGEST", 2)

    def play(text):
        page = tmp_path / "page.md"
        page.write_text(text)
        monkeypatch.chdir(tmp_path)
        return runner.run(page, lambda name: runner.Terminal())

    return play


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_page_with_the_promised_output_passes(play, text):
    play(text)


@pytest.mark.parametrize("text, wrong", BAD.values(), ids=BAD)
def test_page_without_the_promised_output_fails(play, text, wrong):
    with pytest.raises(AssertionError, match=re.escape(wrong)):
        play(text)
