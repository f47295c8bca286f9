"""What a training has left, as text that can be compared: JSON as it is, the rest as digests of what is in it.

Left out is what may differ from run to run or is nobody's promise: times, the compression of archives, the order of
what lies between the fields of a tree, pictures (their names are recorded), and of a model's card the digests of files
and the versions, which the record has apart.
"""

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.frozen.recorded import as_json, read
from tests.frozen.trainings import Trained, Training

#: By name, in any JSON.
_CHANGING = ("samples_per_second", "versions", "save", "files")
#: All that a tree decides by.
_FIELDS = (
    "children_left",
    "children_right",
    "feature",
    "threshold",
    "value",
    "impurity",
    "n_node_samples",
    "weighted_n_node_samples",
    "missing_go_to_left",
)


def versions(job: Training) -> dict[str, str]:
    """Of the libraries that make the bytes; skips where one is not installed."""
    try:
        return {name: importlib.metadata.version(name) for name in job.libraries}
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")


def file_of(name: str, job: Training) -> str:
    """Where the record of a job is, below `recorded/`."""
    return f"digests/{_processor(job)}/{name}.json"


def _processor(job: Training) -> str:
    """What a record holds for: PyTorch's last bits are of the processor, too.

    Its optimizers take square roots by MKL's vector math, which no variable of `trainings.STEADY` holds to one way: of
    twenty operators this one alone differs between AMD's without AVX-512 and an emulated Haswell of Intel's.
    """
    machine = platform.machine()
    if "torch" not in job.libraries:
        return machine
    told = Path("/proc/cpuinfo")
    about = told.read_text(encoding="utf-8") if told.exists() else ""
    maker = re.search(r"^vendor_id\s*: (\S+)", about, re.MULTILINE)
    return machine if maker is None or " avx512f " in about else f"{machine}-{maker[1]}"


def resumed_of(name: str, job: Training) -> str:
    """Where the record of a job is that has resumed its fixture, where that is not what the whole job leaves here.

    A fixture of another processor has that one's bits.
    """
    return file_of(f"{name}-resumed", job)


def require_recorded_versions(name: str, job: Training) -> str:
    """The name of the record of a job; skips where it was made by other libraries, or on other kinds of machine."""
    record, found = file_of(name, job), versions(job)
    text = read(record)
    known = None if text is None else json.loads(text)["versions"]
    if known != found:
        pytest.skip(f"recorded with {known} and not {found} on {_processor(job)}: make freeze WHAT=digests records")
    return record


def digest_of(job: Training, done: Trained) -> str:
    """Models, outputs and the newest checkpoint of each host, as JSON."""
    found: dict[str, object] = {"versions": versions(job)}
    for number, root in enumerate(done.roots, start=1):
        checkpoints = _newest(root / "checkpoints")
        found[f"host-{number}"] = {
            "model": {path.name: _content(path) for path in _files(root / "model")},
            "output": {path.name: _content(path) for path in _files(root / "output/data")},
            "checkpoint": {
                str(path.relative_to(root / "checkpoints")): _content(path)
                for directory in checkpoints
                for path in _files(directory)
            },
        }
    text = as_json(found)
    for number, host in enumerate(done.hosts, start=1):
        text = text.replace(host, f"host-{number}")
    return text


#: Checkpoints of that version hold no scores of epochs and folds: the curves of such a job begin where it resumed.
CURVES = ("learning-curves.json", "histories.json", "history")


def without_curves(text: str) -> object:
    """What a job leaves that has resumed a fixture."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            return {name: kept(each) for name, each in value.items() if not name.endswith(CURVES)}
        if isinstance(value, list):  # a dict of a checkpoint's state is a list of pairs
            return [kept(each) for each in value if not (isinstance(each, list) and each[:1] == ["history"])]
        return value

    return kept(json.loads(text))


def _newest(checkpoints: Path) -> list[Path]:
    """Of each directory with checkpoints the one of the highest step."""
    steps = sorted(path for path in checkpoints.rglob("step-*") if path.is_dir())
    return list({path.parent: path for path in steps}.values())


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _content(path: Path) -> object:
    if path.name == "MANIFEST.json":
        manifest = json.loads(path.read_bytes())["manifest"]
        # What is in the files follows one by one.
        return {"step": manifest["step"], "info": _steady(manifest["info"]), "files": sorted(manifest["files"])}
    read_it = _READERS.get(path.suffix or path.name)
    return read_it(path) if read_it else _sha256([path.read_bytes()])


def _of_json(path: Path) -> object:
    return _steady(json.loads(path.read_bytes()))


def _steady(value: Any) -> object:
    """JSON without what changes from run to run."""
    if isinstance(value, dict):
        return {name: _steady(each) for name, each in value.items() if not name.endswith(_CHANGING)}
    if isinstance(value, list):
        # A dict of a checkpoint's state is a list of pairs.
        return [_steady(each) for each in value if not _is_changing_pair(each)]
    return value


def _is_changing_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0].endswith(_CHANGING)


def _of_tensors(path: Path) -> dict[str, str]:
    import torch  # noqa: PLC0415 - most jobs have none

    weights: Mapping[str, Any] = torch.load(path, weights_only=True)
    return {name: _sha256([str(value.dtype).encode(), value.numpy().tobytes()]) for name, value in weights.items()}


def _of_joblib(path: Path) -> object:
    import joblib  # noqa: PLC0415 - most jobs have none

    return _of_estimator(joblib.load(path))


def _of_skops(path: Path) -> object:
    import skops.io  # noqa: PLC0415 - most jobs have none

    return _of_estimator(skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path)))


def _of_estimator(model: Any) -> object:
    kind = type(model).__name__
    if not hasattr(model, "estimators_"):
        return {"kind": kind, "coef_": model.coef_.tolist(), "intercept_": model.intercept_.tolist()}
    trees = {
        f"tree {number}": _sha256(
            [str(tree.random_state).encode(), *(getattr(tree.tree_, field).tobytes() for field in _FIELDS)]
        )
        for number, tree in enumerate(model.estimators_)
    }
    return {"kind": kind, **trees}


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


_READERS: Mapping[str, Callable[[Path], object]] = {
    ".json": _of_json,
    ".pt": _of_tensors,
    ".joblib": _of_joblib,
    ".skops": _of_skops,
    # The last is torch's own index of a sharded state, a pickle; what it says lies in the files beside it, too.
    **dict.fromkeys((".png", ".svg", ".pt2", ".metadata"), lambda _: "not compared"),
}
