"""The page in other sites: in a frame, and behind a path prefix of a reverse proxy."""

import re
import subprocess

import pytest
from support import wait_until
from support.engine import docker, web
from support.processes import free_port

COUNTER = re.compile(r"\b1[,. ]?234[,. ]?\d{3}\b")
CONFIG = """
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 127.0.0.1:{port};
    location /class/coins/ {{ proxy_pass http://127.0.0.1:8000/; }}
    location /favicon.ico {{ return 204; }}
    location /frame {{ default_type text/html; return 200 '<iframe src="{page}"></iframe>'; }}
  }}
}}
"""


@pytest.fixture
def nginx(need, tmp_path):
    """The address of a reverse proxy: webui under /class/coins/, and a site with a frame."""
    need("nginx")
    port = free_port()
    text = CONFIG.format(folder=tmp_path, port=port, page="http://localhost:8000/")
    (tmp_path / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-p", tmp_path, "-c", tmp_path / "nginx.conf"])
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: web.get(f"{address}/frame", timeout=2).ok, 5, "nginx answers")
        yield address
    finally:
        process.terminate()
        process.wait(5)


@pytest.mark.parametrize("path", ["/class/coins/", "/frame"])
def test_page_works_behind_a_path_prefix_and_in_a_frame_of_another_site(app, nginx, chromium, path):
    (redis,) = app.containers("redis")
    docker("exec", redis, "redis-cli", "set", "hashes", "1234000")  # a number to look for
    page, requests = chromium.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(nginx + path)
    body = (page.frame_locator("iframe") if path == "/frame" else page).locator("body")
    wait_until(lambda: COUNTER.search(body.inner_text()), 10, "the counter is in the page")
    start = "http://localhost:8000/" if path == "/frame" else nginx + path
    assert len(requests) > 3
    others = {url for url in requests if not url.startswith(start)}
    assert others <= {f"{nginx}/frame", f"{nginx}/favicon.ico"}
