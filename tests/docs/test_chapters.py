"""Each chapter of the course does what it says, from the first to the last."""

import pytest
from conftest import CASES


@pytest.mark.parametrize("chapter, by_hand", CASES)
def test_chapter_does_what_it_says(course, chapter, by_hand):
    course.play(chapter, by_hand)
