"""Each fault test has a stack of its own."""

import pytest
from support.processes import Stack


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    yield stack
    stack.close()
