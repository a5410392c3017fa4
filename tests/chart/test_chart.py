"""What the page promises, on one application, in the order of a workshop."""

import itertools
import os
import re
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse
from urllib.request import urlopen

import pytest
import requests
from support import wait_until
from support.processes import free_port

OUTAGE = 60 if os.environ.get("FULL") else 8  # seconds without Redis
NINE = [f"worker.{i}" for i in range(2, 11)]  # with the first one, ten
REDIS_AWAY = {"error": "Redis is unreachable: Timeout reading from redis:6379"}


def speeds(stack, name="webui"):
    """Return {second: hashes} of the chart."""
    answer = requests.get(stack.url(name, "/speed"), timeout=5).json()
    assert min(answer["speed"]) >= 0
    return dict(enumerate(answer["speed"], answer["start"]))


def wait_for(page, script, seconds=8, arg=None):
    """Wait until `script` is true. (Playwright's own waiting needs eval, which CSP forbids.)"""
    wait_until(lambda: page.evaluate(script, arg), seconds, script)


def wait_state(page, words, seconds):
    """Wait until the page's status line contains these words."""
    script = "(words) => document.getElementById('state').textContent.includes(words)"
    wait_for(page, script, seconds, words)


def value_at(page, fraction):
    """Return what the page shows when the pointer is at this fraction of the chart's width."""
    box = page.locator("#chart").bounding_box()
    page.mouse.move(box["x"] + fraction * box["width"], box["y"] + box["height"] / 2)
    return page.inner_text("#value")


def assert_flat(stack, begin):
    """Assert that for 5 s from `begin` each second is within 5 % of the counter's rate.

    One of three attempts is enough: other load on the machine changes the rate.
    """
    for _ in range(3):
        begin = max(begin, time.time())
        wait_until(lambda begin=begin: time.time() >= begin, 11, "10 s after the start")
        true, end = stack.rate(5), time.time()
        drawn = wait_until(
            lambda end=end: (found := speeds(stack)) and max(found) >= int(end) and found,
            5,
            "the chart has it",
        )
        line = [hashes for second, hashes in drawn.items() if begin < second < int(end)]
        if len(line) >= 4 and all(abs(each - true) < 0.05 * true for each in line):
            return
    raise AssertionError(f"{line}, counted {true}")


# The contrast between the page's background and the text or line of each selected element.
CONTRASTS = """(selectors) => {
    const light = (colour) => {
        const [r, g, b] = colour.match(/[0-9.]+/g).map((part) => part / 255)
            .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const back = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll(selectors)].map((element) => {
        const { stroke, fill, color } = getComputedStyle(element);
        const found = !element.closest("svg") ? color : stroke === "none" ? fill : stroke;
        return Math.max(light(found), back) / Math.min(light(found), back);
    });
}"""


# What the page shows from the start


def test_title_is_that_of_the_original(page):
    assert page.title() == "DockerCoins Miner WebUI"


def test_page_loads_only_from_webui_and_at_most_30_kb(stack, open_page):
    page = open_page(stack.url("webui"))
    paths = {"/", "/index.html", "/page.css", "/page.js", "/favicon.svg", "/speed"}

    def first():
        page.wait_for_timeout(20)
        return {urlparse(each.url).path: each for each in reversed(page.asked)}

    asked = wait_until(lambda: (found := first()).keys() >= paths and found, 5, "all is loaded")
    assert asked.keys() == paths
    own = urlparse(stack.url("webui")).netloc
    assert {urlparse(each.url).netloc for each in page.asked} == {own}
    sizes = [each.request.sizes() for each in asked.values()]
    assert sum(each["responseBodySize"] + each["responseHeadersSize"] for each in sizes) <= 30_000


def test_chart_is_drawn_within_a_second(stack, open_page):
    for _ in range(3):  # other load on the machine delays it
        page = open_page(stack.url("webui"))
        wait_for(page, "document.querySelector('svg .grid')")
        if page.evaluate("performance.now() < 1000"):
            return
    raise AssertionError("it took longer, three times")


def test_page_may_not_request_other_origins(page):
    page.evaluate("fetch('http://localhost:1/').catch(() => {})")
    wait_until(lambda: page.wait_for_timeout(20) or page.errors, 3, "the browser reports it")
    assert any("Content Security Policy" in error for error in page.errors)
    page.errors.clear()


def test_screen_reader_gets_the_speed_and_a_description_of_the_chart(page):
    wait_state(page, "Mining.", 8)
    assert page.get_attribute("#spoken", "aria-live") == "polite"
    assert page.text_content("#spoken").endswith("hashes per second")
    label = page.get_by_role("img").get_attribute("aria-label")
    assert re.search("last 250 seconds: now [23]", label)


def test_link_shares_the_speed(page):
    link, speed = page.evaluate("[share.href, document.getElementById('speed').textContent]")
    text = f"I'm mining DockerCoins at {speed} hashes/second"
    assert parse_qs(urlparse(link).query)["text"] == [text]


@pytest.mark.parametrize("width", [360, 1000, 2560])
def test_page_fits_the_width_and_loads_without_layout_shift(stack, open_page, width):
    page = open_page(stack.url("webui"), width, 740)
    wait_state(page, "Mining.", 8)
    shift = """new Promise((done) => new PerformanceObserver((list) =>
        done(list.getEntries().reduce((sum, entry) => sum + entry.value, 0))
        ).observe({ type: "layout-shift", buffered: true }) ?? setTimeout(done, 200, 0))"""
    assert page.evaluate(shift) == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(stack, open_page, scheme):
    page = open_page(stack.url("webui"), color_scheme=scheme)
    wait_state(page, "Mining.", 8)
    for state in ("Mining.", "Redis is unreachable"):
        wait_state(page, state, 5)
        assert page.evaluate(CONTRASTS, ["body"])[0] >= 7
        assert min(page.evaluate(CONTRASTS, ["h1", "#state", "a", "dt", "dd", "svg text"])) >= 4.5
        assert min(page.evaluate(CONTRASTS, ["svg .area"])) >= 3
        page.route("**/speed", lambda route: route.fulfill(status=503, json=REDIS_AWAY))


def test_colours_follow_a_change_between_light_and_dark(stack, open_page):
    page = open_page(stack.url("webui"), color_scheme="light")
    wait_state(page, "Mining.", 8)
    colours = """['body', 'svg .area', 'svg text'].flatMap((selector) => {
        const { color, backgroundColor, fill, stroke } =
            getComputedStyle(document.querySelector(selector));
        return `${color} ${backgroundColor} ${fill} ${stroke}`;
    })"""
    light = page.evaluate(colours)
    page.emulate_media(color_scheme="dark")
    wait_for(page, f"(light) => {colours}.every((colour, i) => colour !== light[i])", 3, light)


# Notes when the line of the chart changed, in milliseconds since the page was opened.
MOVED = """{
    const line = () => document.querySelector("svg .area").getAttribute("d");
    let before = line();
    window.moved = [];
    new MutationObserver(() => {
        if (line() !== before) moved.push(performance.now());
        before = line();
    }).observe(document.querySelector("svg"), { childList: true });
}"""


def test_numbers_change_each_second_with_reduced_motion(calm_page):
    wait_state(calm_page, "Mining.", 8)
    calm_page.evaluate(MOVED)
    numbers = calm_page.inner_text("#hashes")
    script = "(before) => document.getElementById('hashes').textContent !== before"
    wait_for(calm_page, script, 5, numbers)


# Embedded in other sites


class Elsewhere(BaseHTTPRequestHandler):
    """Another site: a page with webui in a frame, and webui behind the prefix /a/prefix/."""

    def do_GET(self):
        if self.path.startswith("/a/prefix/"):
            with urlopen(self.server.webui + self.path.removeprefix("/a/prefix")) as answer:
                kind, body = answer.headers["Content-Type"], answer.read()
        else:
            kind, body = "text/html", f"<iframe src='{self.server.webui}/index.html'>".encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def elsewhere(stack):
    """The address of the other site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        server.webui = stack.url("webui").rstrip("/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_page_works_in_a_frame_of_another_origin(elsewhere, open_page):
    page = open_page(elsewhere.replace("127.0.0.1", "localhost"))
    page.frame_locator("iframe").get_by_text("Mining.").wait_for(timeout=8000)


def test_page_works_behind_a_path_prefix(elsewhere, open_page):
    wait_state(open_page(f"{elsewhere}/a/prefix/index.html"), "Mining.", 8)


# The chart shows what was mined


def test_one_worker_is_a_flat_line_from_10_s_after_the_start(stack):
    assert_flat(stack, stack.began + 10)


def test_time_and_speed_under_the_pointer_are_those_of_the_chart(stack, page):
    time_of_day, speed, unit = value_at(page, 0.99).split()
    assert unit == "hashes/s"
    assert 2.9 <= float(speed) <= 3.4
    seconds = "(now) => [...Array(60).keys()].map((late) => new Date((now - late) * 1000)"
    times = page.evaluate(f"{seconds}.toLocaleTimeString('en-GB'))", stack.db.time()[0])
    assert 2 <= times.index(time_of_day) <= 8  # seconds ago, though the browser's clock is wrong
    assert value_at(page, 0.2).endswith("–")  # before the worker was started
    page.mouse.move(0, 0)
    wait_for(page, "document.getElementById('value').hidden")


def test_time_and_speed_are_shown_on_touch(stack, open_page):
    page = open_page(stack.url("webui"), has_touch=True)
    wait_state(page, "Mining.", 8)
    box, touch = page.locator("#chart").bounding_box(), page.context.new_cdp_session(page)
    point = {"x": box["x"] + 0.99 * box["width"], "y": box["y"] + 20}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    wait_until(lambda: page.inner_text("#value").endswith("hashes/s"), 2, "the value is shown")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    wait_for(page, "document.getElementById('value').hidden")


def test_ten_workers_are_a_flat_line(stack, page):
    stack.start(*NINE)
    everyone = [*NINE, "worker"]
    wait_until(lambda: all("units of work" in stack.log(name) for name in everyone), 10, "counted")
    began = time.time()
    now = "Number(document.querySelector('svg').ariaLabel.match(/now ([0-9.]+)/)[1])"
    wait_for(page, f"{now} > 9.3", 5)
    assert_flat(stack, began + 2)
    wait_for(page, "Number(document.getElementById('speed').textContent) > 9.3", 1)
    assert page.evaluate("[...document.querySelectorAll('svg .y')][0].textContent") == "0"
    assert max(speeds(stack).values()) <= 10.3


def test_numbers_are_those_of_redis(stack, page):
    before = stack.hashes()
    script = "(n) => Number(document.getElementById('hashes').textContent.replace(',', '')) >= n"
    wait_for(page, script, arg=before)
    assert int(page.inner_text("#hashes").replace(",", "")) <= stack.hashes()
    assert int(page.inner_text("#coins")) <= stack.db.hlen("wallet")
    assert page.errors == []  # nothing has failed yet


def test_chart_moves_once_in_ten_seconds_with_reduced_motion(calm_page):
    wait_for(calm_page, "moved.length > 1", 25)
    times = calm_page.evaluate("moved")
    assert all(late - early > 9_000 for early, late in itertools.pairwise(times))


def test_stopped_rng_is_reported_and_drawn_as_a_gap(stack, page):
    stack.stop("rng")
    wait_state(page, "Nothing is mining", 9)
    assert page.inner_text("#speed") == "0.0"
    assert "seconds: now 0.0," in page.get_by_role("img").get_attribute("aria-label")
    assert value_at(page, 0.99).endswith("–")
    page.mouse.move(0, 0)


def test_original_worker_without_chart_data_is_not_reported_as_idle(stack, page):
    stack.db.incrby("hashes", 4)
    wait_for(page, "document.getElementById('speed').textContent === '–'")
    assert "Nothing is mining" not in page.inner_text("#state")


def test_gap_ends_when_rng_is_started_again(stack, page):
    before = stack.hashes()
    stack.start("rng").ready()
    wait_until(lambda: stack.hashes() > before, 5, "the workers count")
    wait_state(page, "Mining", 3)
    line = wait_until(lambda: (found := [*speeds(stack).values()])[-1] and found, 9, "drawn again")
    begin = next(i for i, value in enumerate(line) if value)
    assert 0 in line[begin:]
    wait_state(page, "Mining.", 9)


def test_page_shows_the_same_past_after_a_reload(page):
    def past():
        shown = {value_at(page, i / 300) for i in range(200, 280)}
        return dict(text.split(maxsplit=1) for text in shown)

    before = past()
    page.reload()
    wait_state(page, "Mining.", 8)
    after = past()
    shared = before.keys() & after.keys()
    assert len(shared) > 20 and any("hashes/s" in before[second] for second in shared)
    assert all(before[second] == after[second] for second in shared)
    page.mouse.move(0, 0)


def test_second_replica_and_a_restart_of_webui_show_the_same_history(stack, page):
    stack.ports["webui.2"] = free_port()
    stack.start("webui.2", WEBUI_PORT=str(stack.ports["webui.2"]))
    wait_until(lambda: speeds(stack, "webui.2"), 10, "the second webui answers")
    here, there = speeds(stack), speeds(stack, "webui.2")
    stack.stop("webui.2")
    stack.stop("webui")
    wait_state(page, "webui is unreachable", 3)
    stack.start("webui").ready()
    wait_state(page, "Mining.", 3)
    later = speeds(stack)
    shared = sorted(here.keys() & there.keys() & later.keys())[:-2]  # a busy worker counts late
    assert len(shared) > 230
    shown = {second: {here[second], there[second], later[second]} for second in shared}
    assert {second: values for second, values in shown.items() if len(values) > 1} == {}


def test_unreachable_redis_is_reported_and_the_outage_is_drawn_at_the_true_speed(stack, page):
    stack.send("redis", signal.SIGSTOP)
    began = time.time()
    try:
        wait_state(page, "Redis is unreachable", 5)
        assert page.inner_text("#speed") == "–"
        assert "Timeout" in page.inner_text("#state")
        first, last = int(began) + 3, int(began) + OUTAGE
        counts = []
        for moment in (first, last):
            wait_until(lambda moment=moment: time.time() >= moment, OUTAGE, "time without Redis")
            counts.append(stack.served())
    finally:
        stack.send("redis", signal.SIGCONT)
    wait_state(page, "Mining.", 3)
    ended = int(time.time())
    drawn = wait_until(
        lambda: (found := speeds(stack)) and max(found) > ended and found, 8, "the chart is drawn"
    )
    line = [drawn[second] for second in range(first, last)]
    assert sum(line) == pytest.approx(counts[1] - counts[0], rel=0.15, abs=5)
    assert max(line) <= 10.3


def test_counter_reset_draws_no_spike(stack, page):
    stack.db.set("hashes", 1)
    script = "Number(document.getElementById('hashes').textContent.replace(',', '')) < 50"
    wait_for(page, script)
    reset = time.time()
    drawn = wait_until(
        lambda: (found := speeds(stack)) and max(found) > reset + 1 and found, 8, "it is drawn"
    )
    assert min([*drawn.values()][-5:]) > 8
    assert max(drawn.values()) <= 10.3


def test_scaling_down_is_drawn_within_5_s_as_a_ramp_of_two_seconds(stack):
    for name in NINE:
        stack.processes[name].terminate()
    for name in NINE:
        assert stack.processes.pop(name).wait(5) == 0
    stopped = time.time()  # the last one has finished its unit of work

    def newest():
        second, hashes = max(speeds(stack).items())
        return second > stopped and hashes < 3.6 and time.time()

    assert wait_until(newest, 7, "one worker is drawn") < stopped + 5
    line = [hashes for second, hashes in speeds(stack).items() if second >= int(stopped) - 3]
    assert sum(3.6 < hashes < 8.5 for hashes in line) <= 2, line


def test_restarted_redis_without_data_is_reported_and_mining_is_shown_again(stack, page):
    stack.stop("redis", signal.SIGKILL)
    wait_state(page, "Redis is unreachable", 3)
    assert page.inner_text("#speed") == "–"
    stack.start("redis")
    wait_until(stack.db.ping, 5, "redis answers")
    wait_state(page, "Mining", 3)
    wait_state(page, "Mining.", 8)  # 5 s without a gap, 2.6 s late
    drawn = wait_until(lambda: any((found := speeds(stack)).values()) and found, 5, "it is drawn")
    assert max(drawn.values()) <= 10.3


def test_unchanged_counter_after_an_outage_is_not_reported_as_idle(stack, open_page):
    page = open_page(stack.url("webui", "/favicon.svg"))
    answer = {"coins": 1, "hashes": "20", "now": 1e9, "start": 10**9 - 253, "speed": [3.0] * 250}
    page.route("**/speed", lambda route: route.fulfill(json=answer))
    page.goto(stack.url("webui"))
    wait_state(page, "Mining.", 5)
    answer |= {"now": 1e9 + 60, "coins": 2}  # Redis was unreachable for a minute
    wait_for(page, "document.getElementById('coins').textContent === '2'")
    assert page.inner_text("#state") == "Mining."


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({"json": REDIS_AWAY}, f"{REDIS_AWAY['error']}. Trying again each second."),
        ({"body": "<h1>No backend</h1>"}, "webui is unreachable. Trying again each second."),
        ({"json": {"kind": "Status"}}, "webui is unreachable. Trying again each second."),
    ],
    ids=["of webui", "of a proxy", "of the API server's proxy"],
)
def test_reason_of_a_503_is_shown(stack, open_page, answer, state):
    page = open_page(stack.url("webui", "/favicon.svg"))
    page.route("**/speed", lambda route: route.fulfill(status=503, **answer))
    page.goto(stack.url("webui"))
    wait_state(page, state, 5)


def test_announcements_are_at_least_30_s_apart(page):
    wait_for(page, "announced.length > 1", 35)
    times = page.evaluate("announced")
    assert all(late - early > 29_000 for early, late in itertools.pairwise(times))


def test_console_has_only_errors_of_failed_requests(page):
    known = ("503", "ERR_CONNECTION_REFUSED", "ERR_ABORTED", "net::")
    assert not [error for error in page.errors if not any(each in error for each in known)]
