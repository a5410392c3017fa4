"""What the tests share: processes, containers, clusters, browsers, and how to wait."""

import time


def wait_until(condition, seconds, what):
    """Return the first true value of `condition()` within `seconds`, or fail naming `what`.

    An exception counts as false: what is waited for may not be there yet.
    """
    deadline, problem = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except Exception as error:  # noqa: BLE001
            problem = error
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what} ({problem})")
