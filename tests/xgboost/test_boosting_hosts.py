"""Two hosts train one model: killed, it goes on; one lost, the other says which."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.boosting_hosts import HOSTS, finish, make_trees, start
from trainbox.checkpoint.store import Checkpoints

pytestmark = pytest.mark.cluster


@pytest.mark.representative
def test_two_hosts_train_one_model_whose_scores_are_those_of_all_rows(tmp_path: Path) -> None:
    make_trees(tmp_path)
    (code, out, errors), (other_code, other_out, other_errors) = finish(start(tmp_path))
    assert (code, other_code) == (0, 0), errors + other_errors
    assert "127.0.0.1 (rank 0 of 2) has 150 of 240 rows of train, 80 of 80 rows of validation" in errors
    assert "validation: no rows on 127.0.0.2, which still takes part in training" in other_errors
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
    assert "validation: no rows on 127.0.0.2, which still takes part in training" in other_errors


@pytest.mark.long
def test_a_host_without_validation_takes_part_where_rows_lie_on_the_disk(tmp_path: Path) -> None:
    models = []
    for kept in ("off", "on"):
        make_trees(tmp_path / kept, external_memory=kept)
        (code, _, errors), (other_code, _, other_errors) = finish(start(tmp_path / kept))
        assert (code, other_code) == (0, 0), errors + other_errors
        assert ("rows are in 1 blocks on the disk" in errors) is (kept == "on")
        models.append((tmp_path / kept / HOSTS[0] / "model" / "xgboost-model").read_bytes())
    assert models[0] == models[1]


def test_a_host_without_a_row_to_learn_from_is_named_by_all(tmp_path: Path) -> None:
    make_trees(tmp_path, shares=(150, 0))
    for code, _, errors in finish(start(tmp_path)):
        assert code == 7, errors  # also where a host hears it before it has found it itself
        assert "channel train: no rows on 127.0.0.2" in errors


@pytest.mark.parametrize("host", [0, pytest.param(1, marks=pytest.mark.representative)])
def test_the_other_host_leaves_with_the_exit_code_of_the_one_that_fails(tmp_path: Path, host: int) -> None:
    make_trees(tmp_path)
    with Checkpoints(tmp_path / HOSTS[host] / "checkpoints").writing(4, info={"of": "another job"}) as directory:
        (directory / "model.ubj").write_bytes(b"")
    ended = finish(start(tmp_path))
    failed, other = ended[host], ended[1 - host]
    assert (failed[0], other[0]) == (8, 8), failed[2] + other[2]
    reason = (tmp_path / HOSTS[1 - host] / "output" / "failure").read_text()
    assert reason.startswith(f"AlgorithmError: PeerError: {HOSTS[host]} has given up: the checkpoint ")
    assert "(exit code 8, " in reason


#: What is appended to the rows of one host, and the reason that all hosts give.
BAD_ROWS = {
    "text": ("0,1,2,three,4\n", "train/part.csv:91: column 4: 'three' is not a number"),
    "a negative weight": ("0,-1,2,3,4\n", "train/part.csv:91: column 2: the weight '-1' is negative"),
    "a label": ("2,1,2,3,4\n", "train/part.csv:91: label 2 is invalid: objective binary:logistic needs labels 0 and 1"),
    "a code": ("1,1,2,-3,4\n", "train/part.csv:91: code -3 of categorical feature '1' is invalid"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_what_is_wrong_with_the_rows_of_one_host_is_the_reason_of_all(tmp_path: Path, row: str, reason: str) -> None:
    make_trees(tmp_path, csv_weights="1", categorical_features="1", max_depth="2")
    for host in HOSTS:
        path = tmp_path / host / "input/data/train/part.csv"
        rows = [line.split(",") for line in path.read_text().splitlines()]
        path.write_text("".join(f"{label},1,{a},{number % 7},{c}\n" for number, (label, a, _, c, _) in enumerate(rows)))
        (tmp_path / host / "input/data/validation/part.csv").unlink(missing_ok=True)
        (tmp_path / host / "input/data/validation").rmdir()
        config = tmp_path / host / "input/config/inputdataconfig.json"
        config.write_text(json.dumps({"train": json.loads(config.read_text())["train"]}))
    with (tmp_path / HOSTS[1] / "input/data/train/part.csv").open("a") as file:
        file.write(row)
    ended = finish(start(tmp_path))
    told = [(tmp_path / host / "output" / "failure").read_text() for host in HOSTS]
    assert [code for code, _, _ in ended] == [7, 7], ended
    for text in told:
        assert text.startswith(f"ClientError: DataError: {HOSTS[1]}: {reason}")


@pytest.mark.parametrize("on_disk", [pytest.param("off", marks=pytest.mark.long), "on"])
def test_when_a_host_dies_the_other_names_it_and_started_again_they_come_to_the_same_model(
    tmp_path: Path, on_disk: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    make_trees(whole, external_memory=on_disk)
    make_trees(killed, external_memory=on_disk)
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
