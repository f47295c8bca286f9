"""Hosts of an XGBoost job as processes of this machine, each with an address, a tree and rows of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.support.addresses import free_port
from tests.support.waiting import LIMIT

TRAIN = Path(sys.executable).with_name("train")
HOSTS = ("127.0.0.1", "127.0.0.2")
FROZEN_LIMIT_S = 5
HYPERPARAMETERS = {
    "trainbox_script": "xgboost",
    "num_round": "60",
    "objective": "binary:logistic",
    "eval_metric": "error,accuracy,auc",
    "subsample": "0.7",
    "colsample_bynode": "0.7",
    "checkpoint_every": "4",
    "max_depth": "3",
    "nthread": "1",
}
Process = subprocess.Popen[str]


def make_trees(
    directory: Path,
    *,
    hosts: Sequence[str] = HOSTS,
    shares: Sequence[int] = (150, 90),
    held_out: Sequence[int] = (80, 0),
    **hyperparameters: str,
) -> None:
    """A tree for each host, with its own rows; the second has none to be scored on."""
    random = np.random.default_rng(3)
    for number, host in enumerate(hosts):
        root = directory / host
        for channel, rows in (("train", shares[number]), ("validation", held_out[number])):
            folder = root / "input" / "data" / channel
            folder.mkdir(parents=True)
            features = random.normal(size=(rows, 4)).round(4)
            labels = (features[:, 0] + random.normal(size=rows) > 0).astype(int)
            lines = [",".join(map(str, (label, *row))) for label, row in zip(labels, features.tolist(), strict=True)]
            if rows:
                (folder / "part.csv").write_text("\n".join(lines) + "\n")
        config = root / "input" / "config"
        config.mkdir()
        sharded = {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key"}
        files = {
            "hyperparameters": HYPERPARAMETERS | hyperparameters,
            "inputdataconfig": {"train": sharded, "validation": sharded},
            "resourceconfig": {"current_host": host, "hosts": list(hosts)},
            "checkpointconfig": {"LocalPath": "/opt/ml/checkpoints"},
        }
        for name, content in files.items():
            (config / f"{name}.json").write_text(json.dumps(content))


def start(directory: Path, hosts: Sequence[str] = HOSTS) -> list[Process]:
    """The hosts of a job, as processes; one that is silent for `FROZEN_LIMIT_S` is lost."""
    more = {
        "MASTER_PORT": str(free_port()),
        "TRAINBOX_PREFLIGHT": "off",
        "TRAINBOX_HANG_SECONDS": str(FROZEN_LIMIT_S),
    }
    return [
        subprocess.Popen(
            [TRAIN],
            env={**os.environ, **more, "TRAINBOX_ROOT": os.fspath(directory / host)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in hosts
    ]


def finish(processes: list[Process]) -> list[tuple[int, str, str]]:
    """Of each host its exit code, and what it said on stdout and stderr."""
    ended = [process.communicate(timeout=LIMIT) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, ended, strict=True)]
