"""The process that draws: the same pictures, its failures told, and never in the way of the script."""

import itertools
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.trees import is_alive
from tests.support.waiting import eventually
from trainbox.procfs import process_state
from trainbox.tabular.curves import fold_curve
from trainbox.tabular.painter import Curves, Folds, Importance, Painter, Picture
from trainbox.tabular.plots import draw_curves, draw_folds, draw_importance

pytestmark = pytest.mark.process

CURVES = {"validation:auc": ([0, 1, 2], [0.5, math.nan, 0.7]), "train:auc": ([0, 2], [0.6, 0.9])}
IMPORTANCE = {"a": 0.5, "price in $": 0.3, "broken": math.inf}


def test_pictures_are_those_that_this_process_would_draw(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    draw_curves(here / "curves", CURVES, step="trees", selected=2)
    folds = {"auc": fold_curve("auc", [[(0, {"auc": 0.5})], [(0, {"auc": math.nan}), (1, {"auc": 0.75})]], [0, 1])}
    draw_folds(here / "folds", folds, step="trees")
    draw_importance(here / "importance", IMPORTANCE, kind="mean gain")
    with Painter() as painter:
        painter.draw(
            Curves(str(there / "curves"), CURVES, "trees", 2),
            Folds(str(there / "folds"), folds, "trees"),
            Importance(str(there / "importance"), IMPORTANCE, "mean gain"),
        )
    names = sorted(path.name for path in here.iterdir())
    assert names == ["curves.png", "curves.svg", "folds.png", "folds.svg", "importance.png", "importance.svg"]
    assert sorted(path.name for path in there.iterdir()) == names
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pictures: list[Picture] = [
        Importance(str(tmp_path / "importance"), {"a": 1.0}),
        Curves(str(tmp_path / "absent" / "curves"), {"validation:auc": ([0], [0.5])}),
    ]
    with pytest.raises(FileNotFoundError, match="absent") as raised, Painter() as painter:
        painter.draw(*pictures)
    assert Path(str(raised.value.filename)).parent == tmp_path / "absent"


def test_a_painter_that_is_killed_costs_its_pictures_and_not_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Painter() as painter:
        os.kill(painter.process_id, signal.SIGKILL)
        eventually(lambda: not is_alive(painter.process_id), "the end of the painter")
        painter.draw(Importance(str(tmp_path / "importance"), {"a": 1.0}))
    assert "WARNING: no pictures: what draws them ended with -9" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def forks_of(process: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_painter_that_is_killed_while_it_draws_leaves_no_fork_and_nobody_who_waits_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = list(range(50_000))
    curves = {f"validation:m{number}": (steps, [step % 7.0 for step in steps]) for number in range(12)}
    with Painter() as painter:
        painter.draw(Curves(str(tmp_path / "one"), curves), Curves(str(tmp_path / "other"), curves))
        eventually(lambda: len(forks_of(painter.process_id)) == 2, "two forks")
        forks = forks_of(painter.process_id)
        os.kill(painter.process_id, signal.SIGKILL)
    assert "ended with -9" in capsys.readouterr().err
    eventually(lambda: not any(is_alive(fork) for fork in forks), "the end of the forks")


def frozen(painter: Painter) -> None:
    os.kill(painter.process_id, signal.SIGSTOP)
    eventually(lambda: process_state(painter.process_id) == "T", "the painter is stopped")


@pytest.mark.process
def test_a_painter_that_is_frozen_costs_its_pictures_and_not_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More is ordered than its pipe holds, which it will never read."""
    steps = itertools.count()
    ordered = Importance(str(tmp_path / "importance"), {"a" * 200_000: 1.0})
    with Painter(limit=3.0, clock=lambda: float(next(steps))) as painter:
        frozen(painter)
        painter.draw(ordered)
    said = capsys.readouterr().err
    assert said == "trainbox: WARNING: no pictures: what draws them made no progress for 3 s and was killed\n"
    assert not is_alive(painter.process_id)
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_a_fork_that_is_frozen_while_it_draws_is_killed_with_the_painter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = list(range(50_000))
    curves = {f"validation:m{number}": (steps, [step % 7.0 for step in steps]) for number in range(12)}
    with Painter(limit=1.0) as painter:
        painter.draw(Curves(str(tmp_path / "one"), curves))
        forks = eventually(lambda: forks_of(painter.process_id), "a fork")
        for fork in forks:
            os.kill(fork, signal.SIGSTOP)
    assert "made no progress for 1 s and was killed" in capsys.readouterr().err
    eventually(lambda: not any(is_alive(fork) for fork in forks), "the end of the forks")


def test_a_defect_of_the_painter_is_told_by_its_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Painter() as painter:
        painter.draw(Curves(str(tmp_path / "curves"), {"validation:auc": ([0, 1], [0.5])}))
    assert re.search(r"no pictures: what draws them ended with 1: .*ValueError", capsys.readouterr().err)


def test_a_script_that_draws_nothing_does_not_wait() -> None:
    with Painter() as painter:
        pass
    assert not is_alive(painter.process_id)


def test_the_error_of_a_script_is_its_own() -> None:
    painters: list[Painter] = []

    def fail() -> None:
        with Painter() as painter:
            painters.append(painter)
            raise RuntimeError("the script's own")

    with pytest.raises(RuntimeError, match="the script's own"):
        fail()
    assert not is_alive(painters[0].process_id)


SCRIPT = """\
import signal, sys
from trainbox.tabular.painter import Importance, Painter
signal.signal(signal.SIGTERM, lambda *_: None)  # as a script does that saves and leaves
with Painter() as painter:
    print(painter.process_id, flush=True)
    sys.stdin.readline()
    painter.draw(Importance(sys.argv[1], {"a": 1.0}))
"""


def start(picture: Path) -> tuple[subprocess.Popen[str], int]:
    """A script in a process group of its own, and its painter."""
    command = [sys.executable, "-c", SCRIPT, os.fspath(picture)]
    script = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
    assert script.stdout
    return script, int(script.stdout.readline())


def test_the_painter_leaves_with_a_script_that_is_killed(tmp_path: Path) -> None:
    script, painter = start(tmp_path / "importance")
    script.kill()
    script.communicate()
    eventually(lambda: not is_alive(painter), "the end of the painter")
    assert not list(tmp_path.iterdir())


def test_a_signal_for_the_group_of_the_script_leaves_it_its_painter(tmp_path: Path) -> None:
    script, _ = start(tmp_path / "importance")
    os.killpg(script.pid, signal.SIGTERM)
    script.communicate("draw\n", timeout=300)
    assert script.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["importance.png", "importance.svg"]
