"""The chapters of the course, in order: each command runs and has the promised output."""

import pytest
from conftest import CASES


@pytest.mark.parametrize("chapter, by_hand", CASES)
def test_chapter_has_the_promised_output(course, chapter, by_hand):
    course.play(chapter, by_hand)
