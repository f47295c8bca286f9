"""Two hosts train one model: killed, it goes on; one lost, the other says which."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

TRAIN = Path(sys.executable).with_name("train")
HOSTS = ("127.0.0.1", "127.0.0.2")
HYPERPARAMETERS = {
    "trainbox_script": "xgboost",
    "num_round": "60",
    "objective": "binary:logistic",
    "eval_metric": "error,accuracy,auc",
    "subsample": "0.7",
    "checkpoint_every": "4",
    "max_depth": "3",
    "nthread": "1",
}
Process = subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def make_trees(directory: Path, *, shares: tuple[int, int] = (150, 90), held_out: tuple[int, int] = (80, 0)) -> None:
    """A tree for each host, with its own rows; the second has none to be scored on."""
    random = np.random.default_rng(3)
    for number, host in enumerate(HOSTS):
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
            "hyperparameters": HYPERPARAMETERS,
            "inputdataconfig": {"train": sharded, "validation": sharded},
            "resourceconfig": {"current_host": host, "hosts": list(HOSTS)},
            "checkpointconfig": {"LocalPath": "/opt/ml/checkpoints"},
        }
        for name, content in files.items():
            (config / f"{name}.json").write_text(json.dumps(content))


def start(directory: Path) -> list[Process]:
    port = str(free_port())
    more = {"MASTER_PORT": port, "TRAINBOX_PREFLIGHT": "off", "TRAINBOX_HANG_SECONDS": "5"}
    return [
        subprocess.Popen(
            [TRAIN],
            env={**os.environ, **more, "TRAINBOX_ROOT": os.fspath(directory / host)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in HOSTS
    ]


def finish(processes: list[Process]) -> list[tuple[int, str, str]]:
    ended = [process.communicate(timeout=90) for process in processes]
    return [(process.returncode, *said) for process, said in zip(processes, ended, strict=True)]


def test_two_hosts_train_one_model_whose_scores_are_those_of_all_rows(tmp_path: Path) -> None:
    make_trees(tmp_path)
    (code, out, errors), (other_code, other_out, other_errors) = finish(start(tmp_path))
    assert (code, other_code) == (0, 0), errors + other_errors
    assert "127.0.0.1 (rank 0 of 2) has 150 of 240 rows of train, 80 of 80 rows of validation" in errors
    assert "validation: there is no row on 127.0.0.2, which takes part all the same" in other_errors
    assert "[metrics]" not in other_out
    last = out.splitlines()[-1].split()
    scores = dict(word.split("=") for word in last[2:])
    assert abs(float(scores["train:error"]) + float(scores["train:accuracy"]) - 1) < 1e-6
    assert abs(float(scores["validation:error"]) + float(scores["validation:accuracy"]) - 1) < 1e-6
    assert (tmp_path / HOSTS[0] / "model" / "xgboost-model").exists()
    assert not list((tmp_path / HOSTS[1] / "model").iterdir())


def test_a_host_whose_validation_is_a_header_alone_takes_part(tmp_path: Path) -> None:
    make_trees(tmp_path)
    (tmp_path / HOSTS[1] / "input/data/validation/part.csv").write_text("")
    for path in sorted(tmp_path.glob("*/input/data/*/part.csv")):
        path.write_text("label,a,b,c,d\n" + path.read_text())
    (code, _, errors), (other_code, _, other_errors) = finish(start(tmp_path))
    assert (code, other_code) == (0, 0), errors + other_errors
    assert "validation: there is no row on 127.0.0.2, which takes part all the same" in other_errors


def test_a_host_without_a_row_to_learn_from_is_named_by_all(tmp_path: Path) -> None:
    make_trees(tmp_path, shares=(150, 0))
    for code, _, errors in finish(start(tmp_path)):
        assert code in {5, 7}, errors  # a host may hear it before it has found it itself
        assert "channel train: there is no row on 127.0.0.2" in errors


def test_when_a_host_dies_the_other_names_it_and_started_again_they_come_to_the_same_model(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    make_trees(whole)
    make_trees(killed)
    assert [code for code, _, _ in finish(start(whole))] == [0, 0]
    processes = start(killed)
    checkpoint = killed / HOSTS[0] / "checkpoints" / "step-00000004" / "MANIFEST.json"
    while not checkpoint.exists():
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    subprocess.run(["pkill", "-KILL", "-P", str(processes[1].pid)], check=True)  # the script, not its supervisor
    first, second = finish(processes)
    assert first[0] == 5, first
    assert "127.0.0.2 is lost" in (killed / HOSTS[0] / "output" / "failure").read_text()
    assert second[0] == 128 + signal.SIGKILL
    done = finish(start(killed))
    assert [code for code, _, _ in done] == [0, 0], done
    assert "resuming from step" in done[0][2]
    models = [directory / HOSTS[0] / "model" / "xgboost-model" for directory in (whole, killed)]
    assert models[0].read_bytes() == models[1].read_bytes()
