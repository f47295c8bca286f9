"""The page about requests and answers says what happens."""

import json
import re
from pathlib import Path

import pytest

from tests.support.serving import Linear, ask
from trainbox.contract.hosting import read_hosting
from trainbox.serving.bodies.media_types import IMAGE_TYPES, INPUT_TYPES, OUTPUT_TYPES
from trainbox.serving.hooks.answers import Defaults, answer_with_hooks
from trainbox.serving.hooks.calls import load_hooks
from trainbox.serving.hooks.context import make_context
from trainbox.serving.hooks.defaults import decode_plain, encode_plain, predict_plain
from trainbox.serving.hooks.user_module import Module
from trainbox.supervisor.endpoint.plan import Capacity, count_workers

OTHERS = (Path(__file__).parents[2] / "docs" / "other-endpoints.md").read_text()
PAGE = (Path(__file__).parents[2] / "docs" / "requests-and-answers.md").read_text()
FORMS, ERRORS = PAGE.split("## What is refused")
_BLOCK = re.compile(r"```json\n(.*?)\n```", re.DOTALL)


def test_the_streaming_hook_of_the_page_streams(tmp_path: Path) -> None:
    (hook,) = re.findall(r"```python\n(def predict_fn.*?)```", OTHERS, re.DOTALL)
    path = tmp_path / "inference_of_the_page.py"
    path.write_text(hook)
    hooks = load_hooks(Module(path, ()))
    defaults = Defaults(decode_plain, predict_plain, encode_plain)
    found = answer_with_hooks(
        hooks, Linear(), b"1,2\n3,4\n", "text/csv", "text/event-stream", context=make_context("/m"), defaults=defaults
    )
    assert b"".join(found.body) == b"data: 5.0\n\ndata: 11.0\n\n"  # type: ignore[arg-type]


def test_what_the_page_tells_an_asynchronous_endpoint_is_understood() -> None:
    (told,) = re.findall(r'"Environment": ({.*?}),', OTHERS)
    hosting = read_hosting(json.loads(told))
    assert (hosting.max_body_bytes, hosting.timeout_seconds) == (2**30, 3600)
    capacity = Capacity(cpus=8, memory_bytes=8 * 2**30)
    assert count_workers(hosting, capacity, 200 * 2**20).count == 2
    few = count_workers(read_hosting({}), Capacity(cpus=2, memory_bytes=2**31, has_shared_memory=False), 2**28)
    assert (few.count, few.reason) == (1, "there is no /dev/shm: taken for a serverless endpoint")


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
