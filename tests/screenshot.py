"""Takes the README's picture of the page that `make run` shows: python tests/screenshot.py"""

import sys
from pathlib import Path

from support.browser import MISSING, browser, find


def main(url="http://localhost:8000", file=Path(__file__).parents[1] / "docs/screenshot.png"):
    """Write a screenshot of the page at `url` to `file`."""
    if not find():
        sys.exit(MISSING)
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1000, "height": 500})
        page.goto(url)
        page.get_by_text("Mining.").wait_for()
        page.screenshot(path=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
