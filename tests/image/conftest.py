"""The tests of the image need an engine and the image."""

from tests.image.ecr import account, api
from tests.support.containers import engine, image

__all__ = ["account", "api", "engine", "image"]
