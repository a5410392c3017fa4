"""What the page promises, in the order of an hour in the workshop: the tests share one application and one browser."""

import time
from itertools import pairwise
from urllib.parse import parse_qs, urlparse

import pytest
import requests
from support import wait_until
from support.processes import ROOT, free_port

SCREENSHOTS = ROOT / "tests/screenshots"
MINING = "document.getElementById('state').textContent === 'Mining.'"
FOUR = [f"worker.{i}" for i in (2, 3, 4)]  # with the first one
SIX = [f"worker.{i}" for i in range(5, 11)]  # more: ten in all


def plotted(page):
    """Return {time: speed} as drawn, without the gaps, and without the seconds that may still change."""
    times, speeds = page.evaluate("[chart.data[0], chart.data[1]]")
    return {t: speed for t, speed in zip(times, speeds, strict=True) if speed is not None and t < times[-1] - 5}


def answers(page):
    return [answer.json() for answer in page.asked if "json?since" in answer.url and answer.ok]


def latest(page):
    return page.evaluate("chart.data[1].at(-1)")


def wait_for(page, script, seconds=8, arg=None):
    """Wait until `script` is true. (Playwright's own waiting needs eval, which the page's policy forbids.)"""
    wait_until(lambda: page.evaluate(script, arg), seconds, script)


def wait_state(page, words, seconds):
    wait_for(page, "(words) => document.getElementById('state').textContent.includes(words)", seconds, words)


def wait_gap(page):
    """Wait until the line ends at least 2 s before the right edge, and assert that no speed is shown."""
    wait_for(page, "chart.scales.x.max - chart.data[0].findLast((t, i) => chart.data[1][i] !== null) >= 2")
    assert page.inner_text("#speed") == "–"


def wait_clock(page, seconds):
    """Wait until that many more seconds are drawn."""
    wait_for(page, "(end) => chart.data[0].at(-1) >= end", arg=page.evaluate("chart.data[0].at(-1)") + seconds)


def assert_sane(page):
    """Assert that no speed is below 0 or above what rng can give."""
    speeds = page.evaluate("chart.data[1].filter((speed) => speed !== null)")
    assert speeds and min(speeds) >= 0 and max(speeds) < 10.5


def compute(page, steps):
    """Run JavaScript `steps` with `speed`, a new Speed of the page's module, and return what they return."""
    script = f"async () => {{ const {{ Speed }} = await import('/speed.js'); const speed = new Speed(); {steps} }}"
    return page.evaluate(script)


# The page


def test_title_is_that_of_the_original(page):
    assert page.title() == "DockerCoins Miner WebUI"


def test_first_chart_is_there_within_a_second(stack, open_page):
    for _ in range(3):  # noise of the machine may delay it
        page = open_page(stack.url("webui"))
        wait_for(page, "window.chart?.data[0].at(-1) > 1e9")
        if page.evaluate("performance.now() < 1000"):
            break
    else:
        raise AssertionError("it took longer, three times")
    assert page.evaluate("chart.data[0].length") == 250


def test_page_loads_nothing_from_elsewhere_and_weighs_less_than_100_kb(stack, open_page):
    page = open_page(stack.url("webui"))
    wait_until(lambda: page.wait_for_timeout(20) or len(page.asked) >= 9, 3, "all is loaded")  # with favicon and json
    assert {urlparse(answer.url).netloc for answer in page.asked} == {f"127.0.0.1:{stack.ports['webui']}"}
    assert any(answer.url.endswith("favicon.svg") for answer in page.asked)
    sizes = [answer.request.sizes() for answer in page.asked]
    assert sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes) < 100_000


def test_page_asks_when_a_second_turns(page):
    """All pages ask together then, which costs webui less; its first question is for the page's first chart."""
    wait_until(lambda: page.wait_for_timeout(50) or len(answers(page)) > 4, 10, "answers")
    assert sum(0.15 <= answer["clock"] % 1 < 0.4 for answer in answers(page)[-3:]) >= 2


def test_policy_forbids_all_but_the_own_origin(page, stack):
    policy = requests.get(stack.url("webui", "/index.html"), timeout=5).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    script = "fetch('http://localhost:1/').then(() => 'sent', (error) => error.message)"
    blocked = "document.addEventListener('securitypolicyviolation', (event) => { window.blocked = event.blockedURI })"
    page.evaluate(f"{blocked}; {script}")
    wait_for(page, "window.blocked")
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
    page.complaints.clear()


def test_speed_is_announced_politely_and_the_chart_described(page):
    wait_for(page, MINING)
    assert page.get_attribute("#spoken", "aria-live") == "polite"
    assert page.text_content("#spoken").endswith("hashes per second")
    assert page.get_attribute("#chart", "role") == "img"
    assert "seconds: now " in page.get_attribute("#chart", "aria-label")


def test_link_shares_the_speed(page):
    wait_for(page, MINING)
    link, speed = page.evaluate("[share.href, speed.textContent]")
    assert parse_qs(urlparse(link).query)["text"] == [f"I'm mining DockerCoins at {speed} hashes/second"]


@pytest.mark.parametrize("width", [360, 2560])
def test_page_fits_and_nothing_shifts_while_it_loads(stack, open_page, width):
    page = open_page(stack.url("webui"), width)
    wait_for(page, MINING)
    shift = """new Promise((done) => new PerformanceObserver((list) =>
        done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0))
        ).observe({ type: "layout-shift", buffered: true }) ?? setTimeout(done, 200, 0))"""
    assert page.evaluate(shift) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_chart_stands_still_for_those_who_want_no_motion(stack, open_page):
    page = open_page(stack.url("webui"), reduced_motion="reduce")
    wait_for(page, MINING)
    assert page.evaluate("chart.scales.x.max % 10") == 0


# The truth


def assert_flat(stack, page, begin):
    """Assert that for 5 s from `begin` on the line stays within 5 % of the counter's rate, in one of three tries."""
    for _ in range(3):  # noise of the machine may bend the line, and the truth with it
        begin = max(begin, time.time())
        wait_until(lambda begin=begin: page.wait_for_timeout(50) or time.time() >= begin, 11, "10 s after the start")
        true = stack.rate(5)
        end = time.time()
        wait_for(page, "(end) => chart.data[0].at(-1) > end + 1", arg=end)
        speeds = [speed for t, speed in zip(*page.evaluate("chart.data"), strict=True) if begin <= t <= end]
        assert len(speeds) >= 4
        if all(speed is not None and abs(speed - true) < 0.05 * true for speed in speeds):
            return
    raise AssertionError(f"{speeds}, truly {true}")


def test_steady_worker_is_a_flat_line(stack, page):
    assert_flat(stack, page, stack.began + 10)


def test_value_under_the_pointer_is_told(page):
    wait_for(page, MINING)
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 50)
    assert page.inner_text("#value").endswith("hashes/s")
    page.mouse.move(0, 0)
    wait_for(page, "value.hidden")


def test_axis_begins_at_0_and_times_are_those_of_redis(stack, page):
    assert page.evaluate("chart.scales.y.min") == 0
    seconds, micro = stack.db.time()
    assert 1.5 < seconds + micro / 1e6 - page.evaluate("chart.scales.x.max") < 5.5


def test_more_workers_show_fully_within_5_s(stack, page):
    stack.start(*FOUR)
    wait_until(lambda: all("units of work done" in stack.log(name) for name in FOUR), 5, "all workers count")
    wait_for(page, "chart.data[1].at(-1) > 9.3", 5)
    assert_sane(page)


def test_ten_workers_are_a_flat_line_10_s_later(stack, page):
    stack.start(*SIX)
    wait_until(lambda: all("units of work done" in stack.log(name) for name in SIX), 10, "all workers count")
    assert_flat(stack, page, time.time() + 10)
    for name in SIX:
        stack.stop(name)


def test_numbers_are_those_of_redis(stack, page):
    before = stack.hashes()
    wait_for(page, "(n) => Number(hashes.textContent.replace(',', '')) >= n", arg=before)
    assert int(page.inner_text("#hashes").replace(",", "")) <= stack.hashes()
    assert int(page.inner_text("#coins")) <= stack.db.hlen("wallet")


def test_page_opened_later_shows_the_same_past(stack, page, open_page):
    late = open_page(stack.url("webui"))
    wait_for(late, MINING)
    page.reload()
    wait_for(page, MINING)
    old, new = plotted(page), plotted(late)
    assert len(old) > 10
    assert all(old[t] == new[t] for t in old.keys() & new.keys()) and len(old.keys() ^ new.keys()) <= 4


def test_another_replica_of_webui_shows_the_same_past(stack, page, open_page):
    port = str(free_port())
    stack.start("webui.2", WEBUI_PORT=port)
    address = stack.url("webui").replace(str(stack.ports["webui"]), port)
    wait_until(lambda: requests.get(address, timeout=1).ok, 10, "the second webui answers")
    other = open_page(address)
    wait_for(other, MINING)
    here, there = plotted(page), plotted(other)
    assert len(here) > 20
    assert all(here[t] == there[t] for t in here.keys() & there.keys()) and len(here.keys() ^ there.keys()) <= 4
    other.close()
    stack.stop("webui.2")


@pytest.mark.parametrize("width", [360, 1000, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_readable(stack, open_page, scheme, width):
    SCREENSHOTS.mkdir(exist_ok=True)
    page = open_page(stack.url("webui"), width, width * 9 // 16 if width > 360 else 740, color_scheme=scheme)
    wait_for(page, MINING)
    page.screenshot(path=SCREENSHOTS / f"{scheme}-{width}.png")
    contrast = """(name) => {
        const light = (name) => {
            const hex = getComputedStyle(document.documentElement).getPropertyValue(name);
            const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.trim().slice(i, i + 2), 16) / 255)
                .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
        };
        const [low, high] = [light(name), light("--back")].sort((a, b) => a - b);
        return high / low;
    }"""
    for name, least in {"--text": 7, "--soft": 4.5, "--link": 4.5, "--alarm": 4.5, "--line": 3}.items():
        assert page.evaluate(contrast, name) >= least, name


def test_chart_follows_a_change_between_light_and_dark(stack, open_page):
    page, picture = open_page(stack.url("webui"), color_scheme="light"), "chart.ctx.canvas.toDataURL()"
    wait_for(page, MINING)
    light = page.evaluate(f"chart.setData = () => {{}}, {picture}")  # no new numbers: the colours alone may change it
    page.emulate_media(color_scheme="dark")
    wait_for(page, f"(light) => {picture} !== light", 3, light)


def test_nothing_was_complained_about(page, old_page):
    assert page.complaints == old_page.complaints == []


# The trouble


def test_silent_redis_is_told_and_heals(stack, page):
    stack.send("redis", 19)  # SIGSTOP
    try:
        wait_state(page, "Redis is away", 5)
        wait_gap(page)
    finally:
        stack.send("redis", 18)  # SIGCONT
    wait_state(page, "Mining.", 3)
    wait_clock(page, 2)
    assert_sane(page)


def test_stopped_webui_is_told_and_heals_with_the_same_past(stack, page, open_page):
    before = plotted(page)
    stack.stop("webui")
    wait_state(page, "webui does not answer", 3)
    wait_gap(page)
    stack.start("webui").ready()
    wait_state(page, "Mining.", 3)
    after, late = plotted(page), open_page(stack.url("webui"))
    wait_for(late, MINING)
    assert all(after[t] == before[t] for t in after.keys() & before.keys())
    assert len(plotted(late).keys() ^ plotted(page).keys()) <= 4
    assert_sane(page)


def test_counter_set_back_is_no_spike_and_no_negative_speed(stack, page):
    stack.db.set("hashes", 1)
    wait_for(page, "Number(hashes.textContent.replace(',', '')) < 50")
    wait_clock(page, 3)
    assert_sane(page)
    assert latest(page) > 8


def test_restarted_redis_is_told_and_heals(stack, page):
    stack.stop("redis", 9)
    wait_state(page, "Redis is away", 3)
    wait_gap(page)
    stack.start("redis")
    wait_until(stack.db.ping, 5, "redis answers")
    wait_for(page, "!state.classList.contains('trouble')", 3)
    wait_state(page, "Mining.", 5)
    wait_clock(page, 2)
    assert_sane(page)


def test_nothing_mining_is_told_and_heals(stack, page):
    for name in ["worker", *FOUR]:
        stack.stop(name)
    wait_state(page, "Nothing is mining", 9)
    assert page.inner_text("#speed") == "0.0"
    assert latest(page) is None
    before = stack.hashes()
    stack.start("worker")
    wait_until(lambda: stack.hashes() > before, 5, "the worker counts")
    wait_for(page, "!state.classList.contains('trouble')", 3)


def test_announcements_are_rare(page):
    """The speed changed a lot, but at most once in 30 s it is read out."""
    wait_for(page, "announced.length > 1", 35)
    assert all(late - early > 29_000 for early, late in pairwise(page.evaluate("announced")))


# The original


def test_original_page_finds_the_fields_that_it_reckons_with(page):
    """It asks for `json` each second, and divides the growth of `hashes` by that of `now`."""
    ask = "async () => (await fetch('json')).json()"
    first = page.evaluate(ask)
    assert first.keys() == {"coins", "hashes", "now"}
    wait_clock(page, 5)
    last = page.evaluate(ask)
    assert 2 <= (int(last["hashes"]) - int(first["hashes"])) / (last["now"] - first["now"]) <= 4.5


def test_page_works_on_an_original_webui(old_page):
    wait_for(old_page, MINING)
    wait_until(lambda: old_page.wait_for_timeout(50) or len(plotted(old_page)) >= 5, 20, "a line")
    assert all(2.5 <= speed <= 4.2 for speed in plotted(old_page).values())
    assert -5 < old_page.evaluate("chart.scales.x.max") - time.time() - 86400 < 0
    assert old_page.inner_text("#coins") == "7"


# The numbers, without a server: what would take long to happen


def test_second_mined_in_part_is_left_out(page):
    steps = (
        "speed.add({ hashes: 1, clock: 1007, start: 1000, speed: [null, 1, 3, 3, 2, null] }); return speed.plot()[1]"
    )
    assert compute(page, steps)[-6:] == [None, None, 3, 3, None, None]


def test_late_count_is_asked_for_again(page):
    steps = """const ask = () => (speed.add({ hashes: 1, clock: 1003.5, start: 1000, speed: [3] }), speed.since);
        const usual = ask(); speed.interrupt(); return [usual, speed.since, ask()]"""
    assert compute(page, steps) == [996, 0, 0]


def test_clock_of_redis_set_back_begins_anew(page):
    steps = """speed.add({ hashes: 1, clock: 1009, start: 1001, speed: [3, null] });
        speed.add({ hashes: 1, clock: 1004.5, start: 1009, speed: [] });
        const since = speed.since;
        speed.add({ hashes: 1, clock: 1004.6, start: 1000, speed: [4, 4] });
        return [since, speed.end, ...speed.plot()[1].slice(-3)]"""
    assert compute(page, steps) == [0, 1002, None, 4, 4]


@pytest.mark.parametrize(
    ("hashes", "time"), [("3", 61), ("999", 3600)], ids=["counter restarted", "tab slept for an hour"]
)
def test_original_webui_gives_no_wrong_speed_after(page, hashes, time):
    steps = f"""for (let t = 1; t <= 60; t++) speed.add({{ hashes: t * 3, now: t }});
        for (let t = 0; t < 9; t++) speed.add({{ hashes: Number({hashes}) + t * 3, now: {time} + t }});
        return speed.plot()[1]"""
    speeds = compute(page, steps)
    assert {speed for speed in speeds if speed is not None} == {3}
    assert speeds[-1] == 3


def test_hashes_of_original_workers_alone_are_a_line_too(page):
    steps = """for (let t = 1010; t < 1030; t++) {
            speed.add({ hashes: t * 3, clock: t + 0.5, start: t - 10, speed: Array(8).fill(null) });
        }
        return speed.plot()[1].slice(-5)"""
    assert compute(page, steps) == [3] * 5
