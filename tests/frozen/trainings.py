"""Seeded trainings of each algorithm, seconds each, on processors and libraries that are held to one way to compute.

A digest shall not depend on the processor, so each process is told not to use what only some of them have: NumPy,
OpenBLAS, MKL, oneDNN, PyTorch's own kernels and the C library's `exp` all choose by the processor otherwise. Data are
made of whole numbers, and every process has one thread.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tests.support.addresses import addresses, free_port
from trainbox.supervisor.program.choice import find_bundled

#: Longer than any training needs, also beside other work: only one that hangs meets it.
SECONDS = 300.0
SCRIPTS = Path(__file__).with_name("scripts")
_KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
STEADY = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4,-AVX512F",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    #: A bundled script, or one of `scripts/`.
    script: str
    hyperparameters: Mapping[str, str] = {}
    images: bool = False
    #: How the rows are spread over the hosts.
    distribution: str = "FullyReplicated"
    hosts: int = 1
    #: Of each channel.
    rows: int = 120
    #: Processes of PyTorch on one host.
    ranks: int = 1
    #: What makes the bytes.
    libraries: tuple[str, ...]
    #: Which of its results are fixtures: `checkpoint`, `model`.
    fixtures: tuple[str, ...] = ()


_XGBOOST = {
    "num_round": "12",
    "checkpoint_every": "4",
    "nthread": "1",
    "max_depth": "3",
    "subsample": "0.7",
    "colsample_bynode": "0.7",
    "objective": "binary:logistic",
    "eval_metric": "logloss,auc",
}
_FOREST = {"n-estimators": "8", "checkpoint-every": "2", "max-depth": "4", "n-jobs": "1"}
_TABLE = {
    "epochs": "4",
    "batch-size": "60",
    "hidden": "[8]",
    "learning-rate": "0.05",
    "checkpoint-seconds": "0",
}
_OF_XGBOOST = ("xgboost-cpu", "numpy")
_OF_FORESTS = ("scikit-learn", "numpy", "scipy")
_OF_TORCH = ("torch", "numpy")

#: Of so many rows in memory an earlier version had the bins at exact quantiles.
AT_QUANTILES = Training(
    script="xgboost",
    hyperparameters={**_XGBOOST, "max_depth": "2", "eval_train_every": "0"},
    rows=100_000,
    libraries=_OF_XGBOOST,
)
TRAININGS: dict[str, Training] = {
    "xgboost": Training(
        script="xgboost", hyperparameters=_XGBOOST, libraries=_OF_XGBOOST, fixtures=("checkpoint", "model")
    ),
    "xgboost-on-two-hosts": Training(
        script="xgboost",
        hyperparameters=_XGBOOST,
        hosts=2,
        distribution="ShardedByS3Key",
        libraries=_OF_XGBOOST,
    ),
    "xgboost-cross-validation": Training(
        script="xgboost",
        hyperparameters={**_XGBOOST, "num_round": "5", "_kfold": "3"},
        libraries=_OF_XGBOOST,
        fixtures=("checkpoint",),
    ),
    "forest": Training(
        script="random_forest", hyperparameters=_FOREST, libraries=_OF_FORESTS, fixtures=("checkpoint", "model")
    ),
    "forest-on-two-hosts": Training(script="random_forest", hyperparameters=_FOREST, hosts=2, libraries=_OF_FORESTS),
    "estimator": Training(
        script="random_forest",
        hyperparameters={"estimator": "sklearn.linear_model.LogisticRegression"},
        libraries=_OF_FORESTS,
        fixtures=("model",),
    ),
    "pytorch-table": Training(
        script="pytorch", hyperparameters=_TABLE, libraries=_OF_TORCH, fixtures=("checkpoint", "model")
    ),
    "pytorch-table-on-two-hosts": Training(script="pytorch", hyperparameters=_TABLE, hosts=2, libraries=_OF_TORCH),
    "pytorch-images": Training(
        script="pytorch",
        hyperparameters={"epochs": "2", "batch-size": "20", "augment": "1"},
        images=True,
        libraries=_OF_TORCH,
    ),
    "pytorch-sharded": Training(script="sharded_train.py", ranks=2, libraries=_OF_TORCH, fixtures=("checkpoint",)),
}


class Trained(msgspec.Struct, frozen=True):
    """The trees that a job has left, by host, and what each of its processes has said on stderr."""

    roots: tuple[Path, ...]
    hosts: tuple[str, ...]
    logs: tuple[str, ...]


def train(
    job: Training, directory: Path, *, checkpoints: Path | None = None, steady: Mapping[str, str] = STEADY
) -> Trained:
    """Run a job to its good end.

    Args:
        job: What to train.
        directory: Where its trees are made.
        checkpoints: What earlier attempts have left.
        steady: Variables for each process.
    """
    hosts = _names(job.hosts)
    roots = tuple(directory / f"host-{number}" for number in range(1, job.hosts + 1))
    for number, root in enumerate(roots):
        _build_tree(job, root, hosts, number)
        if checkpoints is not None:
            shutil.copytree(checkpoints, root / "checkpoints")
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    script = SCRIPTS / job.script if job.script.endswith(".py") else find_bundled(job.script)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    size = job.hosts * job.ranks
    processes = []
    for rank in range(size):
        root = roots[rank // job.ranks]
        place = {"RANK": rank, "LOCAL_RANK": rank % job.ranks, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": job.ranks}
        of_torch = {**shared, **{name: str(value) for name, value in place.items()}} if "torch" in job.libraries else {}
        environment = {**kept, **steady, **of_torch, "TRAINBOX_ROOT": str(root)}
        with (directory / f"rank-{rank}.log").open("wb") as log:
            processes.append(
                subprocess.Popen([sys.executable, script], env=environment, stdout=log, stderr=log, cwd=root)
            )
    return Trained(roots, hosts, _finish(processes, directory))


def _finish(processes: "Sequence[subprocess.Popen[bytes]]", directory: Path) -> tuple[str, ...]:
    try:
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = tuple((directory / f"rank-{rank}.log").read_text() for rank in range(len(processes)))
    assert codes == [0] * len(processes), "\n".join(logs)
    return logs


def _names(count: int) -> tuple[str, ...]:
    """Hosts that are addresses of this machine."""
    return ("algo-1",) if count == 1 else tuple(addresses(count))


def _build_tree(job: Training, root: Path, hosts: Sequence[str], number: int) -> None:
    config = root / "input/config"
    config.mkdir(parents=True)
    channel = {"TrainingInputMode": "File", "S3DistributionType": job.distribution}
    files: dict[str, object] = {
        "hyperparameters": job.hyperparameters,
        "inputdataconfig": {"train": channel, "validation": channel},
        "resourceconfig": {"current_host": hosts[number], "hosts": hosts, "network_interface_name": "lo"},
        "checkpointconfig": {"LocalPath": "/opt/ml/checkpoints"},
    }
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    for seed, name in enumerate(("train", "validation")):
        folder = root / "input/data" / name
        folder.mkdir(parents=True)
        if job.images:
            _write_images(folder / "images.npz", seed)
            continue
        rows = draw_rows(seed, job.rows)
        own = rows[number :: len(hosts)] if job.distribution == "ShardedByS3Key" else rows
        (folder / "rows.csv").write_text("".join(f"{row}\n" for row in own))


def draw_rows(seed: int, count: int = 120) -> list[str]:
    """Lines of CSV, the label first: two classes that depend on the first two of four features."""
    numbers = random.Random(seed)
    rows = []
    for _ in range(count):
        features = [numbers.randrange(-300, 301) for _ in range(4)]
        label = int(features[0] + features[1] + numbers.randrange(-200, 201) > 0)
        rows.append(",".join([str(label), *(str(value / 100) for value in features)]))
    return rows


def _write_images(path: Path, seed: int) -> None:
    import numpy as np  # noqa: PLC0415 - the other jobs need none here

    numbers = random.Random(seed)
    labels = [number % 2 for number in range(40)]
    pixels = [[numbers.randrange(128) + 100 * label * (place % 8 < 4) for place in range(64)] for label in labels]
    np.savez(path, images=np.array(pixels, dtype=np.uint8).reshape(-1, 8, 8), labels=np.array(labels))
