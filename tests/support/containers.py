"""What tests with containers share: the engine and the image, or one clear line why they are skipped."""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

#: tools/ci/check-image names the one that it will push.
IMAGE = os.environ.get("TRAINBOX_TEST_IMAGE", "trainbox:cpu")


def unavailable(what: str) -> NoReturn:
    """Skip where something is not installed; in CI that is a failure, not a choice."""
    if "CI" in os.environ:
        pytest.fail(f"in CI no test with containers may be skipped: {what}")
    pytest.skip(what)


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the engine, which has the image; without one the tests are skipped, but never in CI."""
    with contextlib.ExitStack() as stack:
        missing = ""
        try:
            import docker  # noqa: PLC0415 - without it there is a line, too

            client = stack.enter_context(
                contextlib.closing(docker.APIClient(version="auto", **docker.utils.kwargs_from_env()))
            )
            client.inspect_image(IMAGE)
        except ModuleNotFoundError:
            missing = "the package docker is not installed: make venv"
        except docker.errors.ImageNotFound:
            missing = f"there is no image {IMAGE}: make image"
        except docker.errors.DockerException:
            missing = "no Docker engine answers: tools/docker-engine start"
        if missing:
            # A client that could not be made leaves its socket to the garbage collector.
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                gc.collect()
            unavailable(missing)
        yield client


@pytest.fixture(scope="session")
def image(engine: Any) -> str:
    """The name of the image, which is there."""
    assert engine
    return IMAGE


def base_of(client: Any) -> str:
    """What BASE_IMAGE must be for an image that is built in a test: the base of the image that is here."""
    labels = client.inspect_image(IMAGE)["Config"]["Labels"]
    name, digest = (labels.get(f"org.opencontainers.image.base.{each}", "") for each in ("name", "digest"))
    if not name:
        unavailable(f"the image {IMAGE} does not name its base: make image")
    return "fallback" if name.startswith("trainbox-base:") else f"{name}@{digest}"
