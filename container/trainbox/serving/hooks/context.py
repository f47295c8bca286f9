"""The `context` that hooks get: the part of multi-model-server's and TorchServe's that users call.

Sources: https://github.com/awslabs/multi-model-server (mms/context.py), and ts/context.py of
https://github.com/pytorch/serve. Both serve batches, so that most functions take the place of the request in its batch;
here there is one, and the place may be left out.
"""

from collections.abc import Mapping
from typing import Any

import trainbox

_OK = 200


class Context:
    """What a hook may know of a request, and say of its answer.

    Args:
        system_properties: `model_dir`, `gpu_id`, `batch_size`, `server_name`, `server_version`.
        request_headers: Of the request; none while the model is loaded.
        request_id: That of the log.
    """

    def __init__(
        self,
        system_properties: Mapping[str, Any],
        request_headers: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        self.system_properties = dict(system_properties)
        self.manifest: dict[str, Any] = {}
        self.model_name = "model"
        self.metrics = None
        self.request_ids = {0: request_id}
        self.request_processor = [RequestProcessor(request_headers or {})]

    @property
    def response_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that hooks have set."""
        return tuple(self._one.get_response_header().items())

    @property
    def response_status(self) -> int:
        """The status that hooks have set, else 200."""
        return self._one.get_response_status_code()

    @property
    def _one(self) -> "RequestProcessor":
        return self.request_processor[0]

    def get_request_id(self, _idx: int = 0) -> str:
        """Return the id of the request."""
        return self.request_ids[0]

    def get_request_header(self, *key: Any) -> str | None:  # noqa: ANN401 - (key) or (idx, key)
        """Return a header of the request, whatever the case of its name; None if there is none."""
        return self._one.get_request_property(str(key[-1]))

    def get_all_request_header(self, _idx: int = 0) -> dict[str, str]:
        """Return all headers of the request."""
        return dict(self._one.get_request_properties())

    def set_response_header(self, *pair: Any) -> None:  # noqa: ANN401 - (key, value) or (idx, key, value)
        """Set a header of the answer."""
        key, value = pair[-2:]
        self._one.add_response_property(str(key), str(value))

    def get_response_headers(self, _idx: int = 0) -> dict[str, str]:
        """Return the headers that were set."""
        return dict(self._one.get_response_header())

    def set_response_content_type(self, *value: Any) -> None:  # noqa: ANN401 - (value) or (idx, value)
        """Set the content type of the answer."""
        self._one.add_response_property("content-type", str(value[-1]))

    def get_response_content_type(self, _idx: int = 0) -> str | None:
        """Return the content type that was set."""
        return self._one.get_response_header().get("content-type")

    def set_response_status(self, code: int = _OK, phrase: str = "", idx: int = 0) -> None:  # noqa: ARG002 - of one request
        """Set the status of the answer."""
        self._one.report_status(code, phrase)

    set_http_response_status = set_response_status
    set_all_response_status = set_response_status

    def get_response_status(self, _idx: int = 0) -> tuple[int, str]:
        """Return the status of the answer and its phrase."""
        return self._one.get_response_status_code(), self._one.get_response_status_phrase()

    get_http_response_status = get_response_status


class RequestProcessor:
    """The headers of a request and of its answer.

    Args:
        request_headers: Of the request.
    """

    def __init__(self, request_headers: Mapping[str, str]) -> None:
        self._given = {name.lower(): value for name, value in request_headers.items()}
        self._headers: dict[str, str] = {}
        self._status, self._phrase = _OK, ""

    def get_request_property(self, key: str) -> str | None:
        """Return a header of the request."""
        return self._given.get(key.lower())

    def get_request_properties(self) -> dict[str, str]:
        """Return all headers of the request."""
        return dict(self._given)

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the answer.

        Raises:
            ValueError: It would end the line.
        """
        if any(letter in f"{key}{value}" for letter in "\r\n\0"):
            raise ValueError(f"the header {key!r} has a line break")
        self._headers[key] = value

    def get_response_header(self) -> dict[str, str]:
        """Return the headers of the answer."""
        return self._headers

    def report_status(self, code: int, reason_phrase: str = "") -> None:
        """Set the status of the answer."""
        self._status, self._phrase = int(code), reason_phrase

    def get_response_status_code(self) -> int:
        """Return the status of the answer."""
        return self._status

    def get_response_status_phrase(self) -> str:
        """Return its phrase."""
        return self._phrase


def make_context(
    model_dir: str,
    request_headers: Mapping[str, str] | None = None,
    request_id: str = "",
    *,
    gpu: int | None = None,
    model_name: str = "model",
) -> Context:
    """Return the context of the start, or of a request.

    Args:
        model_dir: Where the model lies.
        request_headers: Of the request.
        request_id: That of the log.
        gpu: The place of the worker's GPU among those that it sees; None where there is none.
        model_name: What the model is called.
    """
    properties = {
        "model_dir": model_dir,
        "gpu_id": gpu,
        "batch_size": 1,
        "server_name": "trainbox",
        "server_version": trainbox.__version__,
    }
    context = Context(properties, request_headers, request_id)
    context.model_name = model_name
    return context
