"""Two hosts train one model: killed, it goes on; one lost, the other says which."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.boosting_hosts import HOSTS, finish, make_trees, start

pytestmark = pytest.mark.process


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


@pytest.mark.long
def test_a_host_without_validation_takes_part_where_rows_lie_on_the_disk(tmp_path: Path) -> None:
    models = []
    for kept in ("off", "on"):
        make_trees(tmp_path / kept, external_memory=kept)
        (code, _, errors), (other_code, _, other_errors) = finish(start(tmp_path / kept))
        assert (code, other_code) == (0, 0), errors + other_errors
        assert ("lie in 1 blocks on the disk" in errors) is (kept == "on")
        models.append((tmp_path / kept / HOSTS[0] / "model" / "xgboost-model").read_bytes())
    assert models[0] == models[1]


def test_a_host_without_a_row_to_learn_from_is_named_by_all(tmp_path: Path) -> None:
    make_trees(tmp_path, shares=(150, 0))
    for code, _, errors in finish(start(tmp_path)):
        assert code == 7, errors  # also where a host hears it before it has found it itself
        assert "channel train: there is no row on 127.0.0.2" in errors


@pytest.mark.parametrize("host", [0, 1])
def test_the_other_host_leaves_with_the_exit_code_of_the_one_that_fails(tmp_path: Path, host: int) -> None:
    make_trees(tmp_path)
    (tmp_path / HOSTS[host] / "input/data/train/part.csv").write_text("0,1,2,three,4\n")
    failed, other = [finish(start(tmp_path))[number] for number in (host, 1 - host)]
    assert (failed[0], other[0]) == (7, 7), failed[2] + other[2]
    reason = (tmp_path / HOSTS[1 - host] / "output" / "failure").read_text()
    assert reason.startswith(f"AlgorithmError: PeerError: {HOSTS[host]} has given up: train/part.csv:1")
    assert "(exit code 7, " in reason


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
