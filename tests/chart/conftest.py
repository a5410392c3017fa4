"""One application and one browser for all tests of the page."""

import json
import mimetypes
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.browser import MISSING, browser, find
from support.processes import ROOT, Stack

# The page must not trust the browser's clock: here it is 3 hours slow.
WRONG_CLOCK = "const right = Date.now; Date.now = () => right() - 3 * 3600 * 1000;"
# When a screen reader was told something, in milliseconds since the page was opened.
ANNOUNCED = """addEventListener("DOMContentLoaded", () => {
  const times = window.announced = [];
  const spoken = { childList: true, characterData: true, subtree: true };
  new MutationObserver(() => times.push(performance.now())).observe(document.getElementById("spoken"), spoken);
});"""


@pytest.fixture(scope="session")
def chromium():
    if not find():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def stack(chromium, tmp_path_factory):
    """The application with one worker; `began` is when that began, by the clock of this machine."""
    stack = Stack(tmp_path_factory.mktemp("logs"))
    try:
        stack.start("redis", "rng", "hasher", "webui").ready().start("worker")
        stack.began = time.time()
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="session")
def original():
    """The address of an original webui: our page, the fields of the contract, a counter that jumps by 4 each 1.2 s.

    Its clock is one day ahead of ours.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path == "/json":
                now = time.time() + 86400
                body = json.dumps({"coins": 7, "hashes": str(int(now / 1.2) * 4), "now": now}).encode()
            else:
                folder = "webui/node_modules/uplot/dist" if path.startswith("/uplot/") else "webui/files"
                body = (ROOT / folder / path.rpartition("/")[2]).read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", mimetypes.guess_type(path)[0] or "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture(scope="session")
def open_page(chromium):
    """Opens a page as a browser of its own, and notes what it asks for and complains about."""
    contexts = []

    def open_page(url, width=1280, height=800, **settings):
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("response", lambda answer: page.asked.append(answer))
        page.on(
            "console", lambda message: message.type in ("error", "warning") and page.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.add_init_script(WRONG_CLOCK)
        page.add_init_script(ANNOUNCED)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def old_page(original, open_page):
    """Our page on an original webui."""
    return open_page(original)


@pytest.fixture(scope="session")
def page(stack, old_page, open_page):
    """The page that is open all along."""
    return open_page(stack.url("webui"))
