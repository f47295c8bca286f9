"""A server of many models, as SageMaker talks to it, and models that a test can make in no time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from tests.support.servers import Answered, ServeProcess

#: Hooks that do what a request asks for: the body is a verb and its argument.
OBEDIENT = """
import os, signal, time

def model_fn(model_dir):
    return model_dir

def transform_fn(model, body, content_type, accept):
    verb, _, argument = (body if isinstance(body, str) else body.decode()).partition(" ")
    if verb == "sleep":
        time.sleep(float(argument))
    elif verb == "die":
        os.kill(os.getpid(), getattr(signal, argument))
    elif verb == "stream":
        return (time.sleep(0.05) or f"part {number}" for number in range(int(argument)))
    return f"{os.getpid()} {os.path.basename(os.path.dirname(model))}"
"""


class ManyModels(ServeProcess):
    """A server that has no model at first.

    Args:
        root: Of the tree: models lie in `models/NAME/model`.
        variables: Beside those that every server of a test has.
        prefix: What runs it: a command that becomes the server by exec.
    """

    def __init__(self, root: Path, variables: Mapping[str, str] = {}, *, prefix: Sequence[str] = ()) -> None:
        super().__init__(root, {"SAGEMAKER_MULTI_MODEL": "true", **variables}, obedient=None, prefix=prefix)
        self.root = root

    def __enter__(self) -> Self:
        super().__enter__()
        return self.until_ready()

    def call(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Answered:
        """One request over a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers))
            return Answered(connection.getresponse())
        finally:
            connection.close()

    def load(self, name: str, directory: str = "") -> Answered:
        """Load the model in `models/DIRECTORY/model`, by default that of this name."""
        url = self.root / "models" / (directory or name) / "model"
        return self.call("POST", "/models", json.dumps({"model_name": name, "url": str(url)}).encode())

    def unload(self, name: str) -> Answered:
        """Unload a model."""
        return self.call("DELETE", f"/models/{quote(name, safe='')}")

    def invoke_model(self, name: str, body: bytes, headers: Mapping[str, str] = {}) -> Answered:
        """Ask a model, with CSV unless the headers say otherwise."""
        given = {"content-type": "text/csv", **headers}
        return self.call("POST", f"/models/{quote(name, safe='')}/invoke", body, given)

    @property
    def names(self) -> list[str]:
        """Those that are loaded."""
        return [model["modelName"] for model in read(self.call("GET", "/models"))["models"]]


def read(answered: Answered) -> Any:
    """The JSON of an answer."""
    return json.loads(answered.body)


def write_model(root: Path, name: str, files: Mapping[str, str]) -> None:
    """A model of these files: their paths and texts."""
    model = root / "models" / name / "model"
    model.mkdir(parents=True, exist_ok=True)
    for place, text in files.items():
        path = model / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_code(root: Path, name: str, module: str = OBEDIENT) -> None:
    """A model that is the user's own code."""
    write_model(root, name, {"code/inference.py": module})
