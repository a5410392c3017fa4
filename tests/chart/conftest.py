"""One application and one browser for all tests of the page."""

import os
import time

import pytest
from support.browser import MISSING, browser, find
from support.processes import Stack

# The page must not trust the browser's clock: here it is 3 hours slow.
WRONG_CLOCK = "const right = Date.now; Date.now = () => right() - 3 * 3600 * 1000;"
# When the text for screen readers changed, in milliseconds since the page was opened.
ANNOUNCED = """addEventListener("DOMContentLoaded", () => {
  const times = window.announced = [];
  new MutationObserver(() => times.push(performance.now())).observe(
    document.getElementById("spoken"), { childList: true, characterData: true, subtree: true });
});"""


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium."""
    if not find():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def stack(chromium, tmp_path_factory):
    """The application with one worker; `began` is when it was started (s since the epoch)."""
    stack = Stack(tmp_path_factory.mktemp("logs"))
    try:
        stack.start("redis", "rng", "hasher", "webui").ready().start("worker")
        stack.began = time.time()
        yield stack
    finally:
        stack.close()


@pytest.fixture
def open_page(chromium):
    """A function that opens pages, which are closed after the test."""
    pages = []

    def open_page(url, *size, **settings):
        pages.append(new_page(chromium, url, *size, **settings))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()


@pytest.fixture(scope="session")
def page(stack, chromium):
    """A page that stays open during all tests."""
    page = new_page(chromium, stack.url("webui"))
    yield page
    page.context.close()


@pytest.fixture(scope="session")
def calm_page(stack, chromium):
    """Another one, with reduced motion."""
    page = new_page(chromium, stack.url("webui"), reduced_motion="reduce")
    yield page
    page.context.close()


def new_page(chromium, url, width=1280, height=800, **settings):
    """Return a page in a new browser context that records answers and console errors."""
    context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on("response", lambda answer: page.asked.append(answer))
    page.on("console", lambda m: m.type in ("error", "warning") and page.errors.append(m.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.add_init_script(WRONG_CLOCK)
    page.add_init_script(ANNOUNCED)
    page.goto(url)
    return page
