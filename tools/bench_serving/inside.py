"""What the steps of one row cost inside a process, without HTTP: `python -m tools.bench_serving.inside ROOT ROW`.

ROOT has a model of trainbox, ROW is a line of CSV. The forest of scikit-learn is asked both ways: by its own
`predict_proba`, and as `serve` asks it.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from trainbox.contract.hosting import read_hosting
from trainbox.log_lines import emit
from trainbox.serving.bodies.answer import make_service, read
from trainbox.serving.models.find import find_model, list_model, load

_SECONDS = 0.2
_TRIES = 7


class Steps(msgspec.Struct, frozen=True):
    """Microseconds of processor time for one row."""

    parse: float
    predict: float
    log: float
    #: As the library itself predicts; None where that was not asked.
    library: float | None
    #: Whether both gave the same bits.
    is_same: bool
    #: Python and the library.
    versions: str


def cost(call: Callable[[], object]) -> float:
    """The least microseconds of processor time that a call has taken in several tries."""
    count, began = 1, time.thread_time()
    call()
    count = max(1, int(_SECONDS / _TRIES / max(1e-7, time.thread_time() - began)))
    found = []
    for _ in range(_TRIES):
        began = time.thread_time()
        for _ in range(count):
            call()
        found.append((time.thread_time() - began) / count * 1e6)
    return min(found)


def measure(root: Path, line: bytes) -> Steps:
    """Measure the model below a tree as of /opt/ml."""
    hosting = read_hosting({"TRAINBOX_ROOT": str(root)})
    found = find_model(hosting, list_model(hosting))
    predictor = load(found)
    predictor.set_threads(1)
    service = make_service(hosting, predictor)
    question = read(service, line, "text/csv", "*/*")
    assert question is not None  # noqa: S101 - there is a row
    rows = question.rows
    library, is_same = None, True
    if found.framework == "scikit-learn":
        import joblib  # noqa: PLC0415 - the model's own

        forest = joblib.load(found.model_dir / "model.joblib")
        forest.n_jobs = 1
        library = cost(lambda: forest.predict_proba(rows))
        is_same = np.array_equal(forest.predict_proba(rows), predictor.predict(rows))
    name = {"xgboost": "xgboost-cpu", "scikit-learn": "scikit-learn"}[found.framework or "xgboost"]
    return Steps(
        parse=cost(lambda: read(service, line, "text/csv", "*/*")),
        predict=cost(lambda: predictor.predict(rows)),
        log=cost(lambda: emit("POST /invocations 200 1 row 0.05 ms id=4f1b2c3d-1a2b")),
        library=library,
        is_same=is_same,
        versions=f"Python {sys.version.partition(' ')[0]}, {name} {version(name)}",
    )


if __name__ == "__main__":
    print(json.dumps(msgspec.to_builtins(measure(Path(sys.argv[1]), sys.argv[2].encode()))))
