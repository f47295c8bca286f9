"""The page about requests and answers says what happens."""

import json
import re
from pathlib import Path

import pytest

from tests.support.serving import Linear, ask
from trainbox.serving.bodies.media_types import IMAGE_TYPES, INPUT_TYPES, OUTPUT_TYPES

PAGE = (Path(__file__).parents[2] / "docs" / "requests-and-answers.md").read_text()
FORMS, ERRORS = PAGE.split("## What is refused")
_BLOCK = re.compile(r"```json\n(.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("form", _BLOCK.findall(FORMS))
def test_every_form_of_json_on_the_page_has_the_same_rows(form: str) -> None:
    model = Linear()
    assert ask(form.encode(), "application/json", model=model).body == b"45.0\n48.0\n"


def test_the_error_on_the_page_is_that_of_its_request() -> None:
    (shown,) = _BLOCK.findall(ERRORS)
    told, shown = json.loads(ask(b"31,2.5,3\n45,abc,1\n").body), json.loads(shown)
    assert told.pop("hint").startswith(shown.pop("hint").rstrip("…"))
    assert told.pop("id") != shown.pop("id")
    assert told == shown


def test_the_page_has_every_content_type_and_no_other() -> None:
    taken, given = PAGE.split("## JSON")[0], PAGE.split("## Answers")[1].split("## Batch")[0]
    pattern = re.compile(r"`((?:text|application|image)/[a-z.-]+)`")
    assert set(pattern.findall(taken)) == {*INPUT_TYPES, *IMAGE_TYPES}
    assert set(pattern.findall(given)) == {*OUTPUT_TYPES}
