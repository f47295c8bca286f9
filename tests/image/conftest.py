"""The tests of the image need an engine and the image."""

from containers import engine, image
from image.ecr import account, api

__all__ = ["account", "api", "engine", "image"]
