"""Requests to an endpoint: each body is answered, or refused with a status below 500; nothing is raised."""

import io
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from tools.fuzz_parsers import corpus
from trainbox.contract.hosting import Extras, read_hosting
from trainbox.contract.model_card import Features, ModelCard
from trainbox.serving.bodies.answer import Service, make_service, respond

_ROWS: list[list[float | None]] = [[1.0, 2.0, None], [0.5, -1.0, 3.0]]
_JSON = (
    b"[[1,2,null],[0.5,-1,3]]",
    b'{"instances":[{"features":[1,2,3]},{"data":{"features":{"values":[1,2,3]}}}]}',
    b'[{"a":1,"b":2,"c":3}]',
    b'{"columns":["c","b","a"],"data":[[1,2,3]]}',
    b'{"features":{"keys":[0,2],"shape":[3],"values":[1,2]}}',
)


class _Sum:
    """A model that adds up its features; of a card with and without names and texts."""

    is_rowwise = True
    extras: Extras = MappingProxyType({"contributions": lambda rows: rows})

    def __init__(self, features: Features, **about: Any) -> None:  # noqa: ANN401 - fields of a card
        fields: dict[str, Any] = {"framework": "xgboost", "algorithm": "xgboost", "objective": "reg:squarederror"}
        self.card = ModelCard(**fields, features=features, **about)

    def predict(self, rows: Any) -> Any:  # noqa: ANN401 - an array
        return np.asarray(rows.sum(axis=1), np.float32).ravel()

    def set_threads(self, count: int) -> None:
        """Nothing to do."""


def services() -> tuple[Service, ...]:
    """Endpoints whose models have names, texts, and neither."""
    hosting = read_hosting({})
    models = (
        _Sum(Features(3, ("a", "b", "c"))),
        _Sum(Features(3, ("a", "b", "c"), {"b": "text", "c": "code"}), categories={"b": ("x", "y")}),
        _Sum(Features(3)),
    )
    return tuple(make_service(hosting, model) for model in models)


def answer_as(content_type: str) -> Callable[[bytes, Path], None]:
    """Return what answers a body of this content type."""

    def use(content: bytes, _: Path) -> None:
        for service in services():
            found = respond(service, content, content_type, "")
            if found.status not in {200, 204, 400, 413}:
                raise AssertionError(f"{found.status} for {content_type}")

    return use


def _arrow() -> tuple[bytes, ...]:
    columns = {name: [row[place] for row in _ROWS] for place, name in enumerate("abc")}
    tables = (pa.table(columns), pa.table({**columns, "b": pa.array(["x", None]).dictionary_encode()}))
    contents = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        contents.append(bytes(sink.getvalue().to_pybytes()))
    return tuple(contents)


def _npy(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _arrays() -> tuple[bytes, ...]:
    rows = np.array(_ROWS, np.float32)
    return _npy(rows), _npy(np.asfortranarray(rows.astype(">f8"))), _npy(np.ones(3, np.int8))


#: Honest bodies by content type.
BODIES: dict[str, corpus.Corpus] = {
    "text/csv": corpus.of(*corpus.CSVS, b"a,b,c\n1,2,3\n", b"1,x,3\n2,,4\n"),
    "application/json": corpus.of(*_JSON),
    "application/jsonlines": corpus.of(b"\n".join(_JSON[2:])),
    "text/libsvm": corpus.of(*corpus.SVMS),
    "application/x-recordio-protobuf": corpus.of(*corpus.RECORDS),
    "application/x-parquet": corpus.parquets,
    "application/vnd.apache.arrow.stream": _arrow,
    "application/x-npy": _arrays,
}
