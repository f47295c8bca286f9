"""Whether what a release has built is what the tests were of."""

from typing import Any

import pytest

from tools.ci.image import content_digest, refuse_untested

CREATED = "org.opencontainers.image.created"


def inspected(*, layers: tuple[str, ...] = ("a", "b"), created: str = "", **config: Any) -> dict[str, Any]:
    """As an engine describes an image."""
    known = {"Cmd": ["train"], "Labels": {"trainbox.variant": "cpu", CREATED: created}, "Hostname": created, **config}
    return {
        "Id": f"sha256:{created}",
        "Created": created,
        "Os": "linux",
        "Architecture": "amd64",
        "RootFS": {"Layers": list(layers)},
        "Config": known,
    }


def test_two_builds_of_a_commit_have_one_content_whenever_they_are_built() -> None:
    assert content_digest(inspected(created="1")) == content_digest(inspected(created="2"))


@pytest.mark.parametrize(
    "other",
    [
        {"layers": ("a", "c")},
        {"layers": ("b", "a")},
        {"Cmd": ["bash"]},
        {"User": "root"},
        {"Env": ["LD_PRELOAD=/x.so"]},
        {"Labels": {"trainbox.variant": "gpu"}},
    ],
    ids=str,
)
def test_what_a_container_would_be_made_of_is_in_it(other: dict[str, Any]) -> None:
    assert content_digest(inspected(**other)) != content_digest(inspected())


@pytest.mark.parametrize("tested", ["one", "two,one", "two one", "unknown"])
def test_content_that_was_tested_may_be_released(tested: str) -> None:
    refuse_untested("one", {"TESTED_CONTENT": tested})


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "TESTED_CONTENT is not set"),
        ({"TESTED_CONTENT": "two"}, "TESTED_CONTENT has two"),
        ({"TESTED_CONTENT": "unknown,two"}, "has unknown two"),
    ],
)
def test_content_that_was_not_tested_may_not(env: dict[str, str], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        refuse_untested("one", env)
