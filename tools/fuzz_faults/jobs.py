"""The jobs: their data, their commands, the limits they run with, and the digest of a model by what it means."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tools.fuzz_faults.plan import Algorithm, Event, Job
from trainbox.contract.model_card import CARD_FILE

TRAINBOX = Path(sys.executable).with_name("trainbox")
SESSION_SCRIPT = Path(__file__).with_name("session_train.py")
#: Seconds; small, so that what hangs is found soon, and large enough for two busy cores.
HANG, START, PEERS, GRACE = 5, 20, 15, 8
#: Of trainbox itself: a host that is silent counts as lost (coordination), and what the other processes have to save.
_LOST, _OTHERS = 20, 30
#: Of `trainbox run`, from SIGTERM to SIGKILL: only a supervisor that is frozen needs it.
_SUPERVISOR = 120
LIMITS: Mapping[str, int] = {
    "trainbox_hang_seconds": HANG,
    "trainbox_peer_timeout_seconds": PEERS,
    "trainbox_grace_seconds": GRACE,
}
_HYPERPARAMETERS: Mapping[Algorithm, Mapping[str, str]] = {
    "pytorch": {"epochs": "8", "batch-size": "480", "checkpoint-seconds": "0.3", "trainbox_start_seconds": str(START)},
    "session": {"trainbox_launcher": "torchrun", "trainbox_start_seconds": str(START)},
    "xgboost": {
        "objective": "binary:logistic",
        "num_round": "200",
        "max_depth": "4",
        "nthread": "1",
        "subsample": "0.7",
        "checkpoint_every": "10",
        "eval_metric": "logloss",
    },
    "forest": {"n-estimators": "60", "checkpoint-every": "5", "max-depth": "8", "seed": "3"},
}
_SCRIPTS: Mapping[Algorithm, str] = {
    "pytorch": "pytorch",
    "session": str(SESSION_SCRIPT),
    "xgboost": "xgboost",
    "forest": "random_forest",
}
_MODELS: Mapping[Algorithm, str] = {
    "pytorch": "model.pt",
    "session": "weights.bin",
    "xgboost": "xgboost-model",
    "forest": "model.joblib",
}


def make_data(directory: Path) -> None:
    """Write the channels: three files of numbers each, the label first."""
    dice = np.random.default_rng(5)
    for channel, rows in (("train", 20_000), ("validation", 2_000)):
        folder = directory / channel
        folder.mkdir(parents=True)
        features = dice.normal(size=(rows, 6)).round(3)
        labels = (features[:, 0] + features[:, 1] * features[:, 2] + dice.normal(size=rows) / 2 > 0).astype(int)
        lines = [",".join(map(str, (label, *row))) for label, row in zip(labels, features.tolist(), strict=True)]
        for part in range(3):
            (folder / f"part-{part}.csv").write_text("\n".join(lines[part::3]) + "\n")


def command(job: Job, data: Path, out: Path, *, resume: bool) -> list[str]:
    """The `trainbox run` of a job."""
    given = {**_HYPERPARAMETERS[job.algorithm], **{name: str(value) for name, value in LIMITS.items()}}
    argv = [str(TRAINBOX), "run", _SCRIPTS[job.algorithm], "--out", str(out), "--job-name", job.name]
    if job.algorithm != "session":
        argv += ["--channel", f"train={data / 'train'}", "--channel", f"validation={data / 'validation'}"]
    for name, value in given.items():
        argv += ["--hp", f"{name}={value}"]
    if job.algorithm in {"pytorch", "session"}:
        argv += ["--processes", str(job.ranks)]
    return [*argv, "--hosts", str(job.hosts), *(["--resume"] if resume else [])]


def seconds_allowed(event: Event, undisturbed: float, *, busy: float) -> float:
    """How long an attempt may last after the fault: what each limit allows, and several times the job.

    Args:
        event: What happens to it.
        undisturbed: How long the job takes if nothing does.
        busy: Processes that wait for a processor, for each there is.
    """
    frozen = any(fault.blow == "freeze" and fault.kind == "supervisor" for fault in event.faults)
    fixed = HANG + START + PEERS + GRACE + _LOST + _OTHERS + (_SUPERVISOR if frozen and event.job.hosts > 1 else 0)
    return fixed * slowness(busy) + 2 * undisturbed


def slowness(busy: float) -> float:
    """By what a wait may be longer where so many processes share a processor."""
    return min(2.0, 1 + busy / 4)


def digest(job: Job, model: Path) -> str:
    """A digest of the model in a directory; empty where there is none, or it says that it is not complete."""
    path, about = model / _MODELS[job.algorithm], model / CARD_FILE
    if not path.is_file() or not about.is_file():
        return ""
    try:
        if not json.loads(about.read_bytes())["complete"]:
            return ""
        return _digest_of_trees(path) if job.algorithm == "forest" else hashlib.sha256(path.read_bytes()).hexdigest()
    except (ValueError, KeyError, EOFError, AttributeError) as error:
        return f"torn: {type(error).__name__}: {error}"


def _digest_of_trees(path: Path) -> str:
    """By the values alone: between the fields of a node lie bytes that mean nothing."""
    import joblib  # noqa: PLC0415 - loads scikit-learn

    found = hashlib.sha256()
    for estimator in joblib.load(path).estimators_:
        state = estimator.tree_.__getstate__()
        for name in state["nodes"].dtype.names:
            found.update(np.ascontiguousarray(state["nodes"][name]).tobytes())
        found.update(np.ascontiguousarray(state["values"]).tobytes())
    return found.hexdigest()
