"""Each chapter of the course does what it says, from the first to the last."""

import pytest
from conftest import CHAPTERS


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_chapter_does_what_it_says(course, chapter):
    course.play(chapter)
