"""Runs an example with `ModelBuilder` in local container mode; runs under `.venv-sdk-v3`: `python serve.py EXAMPLE`.

The engine, the container and its HTTP are real. AWS is what `calls.py` answers, and the image is pulled from nowhere:
it is in no registry.
"""

import sys
from pathlib import Path
from typing import Any

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session
from docker.models.images import Image, ImageCollection

sys.path.insert(0, str(Path(__file__).parents[1]))

from calls import answer  # type: ignore[import-not-found]


def get_image(images: Any, repository: str) -> Image:
    """Return an image that the engine has."""
    return images.get(repository)


def send(_session: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
    """Answer for AWS."""
    response: AWSResponse = answer([], request)
    return response


if __name__ == "__main__":
    ImageCollection.pull = get_image
    URLLib3Session.send = send
    exec(compile(Path(sys.argv[1]).read_text(), sys.argv[1], "exec"), {"__name__": "example"})
