"""What is around the work of a script: its library's import without what it does not need, an early stop, its log."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainbox import toolkit
from trainbox.errors import Stopped
from trainbox.tabular.script import ending_in_order, log_line, without

REPOSITORY = Path(__file__).resolve().parents[2]


def test_what_is_kept_out_cannot_be_imported_and_can_be_afterwards() -> None:
    before = sys.modules["json"]
    with without("json", "xmlrpc"):
        for name in ("json", "xmlrpc"):
            with pytest.raises(ModuleNotFoundError, match=f"import of {name} halted"):
                __import__(name)
    assert sys.modules["json"] is before
    assert __import__("xmlrpc").__name__ == "xmlrpc"


def test_it_can_be_imported_again_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), without("json"):
        raise ZeroDivisionError
    assert __import__("json").loads("1") == 1


@pytest.mark.parametrize(
    ("program", "name"), [("/opt/train_scripts/xgboost_train.py", "xgboost_train"), ("code/app/__main__.py", "app")]
)
def test_a_line_in_the_log_has_the_name_of_the_script(
    program: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--rounds", "5"])
    log_line("saved 5 rounds")
    assert capsys.readouterr().err == f"{name}: saved 5 rounds\n"


def test_a_stop_of_another_host_is_an_error_where_this_one_was_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "stop_requested", lambda: False)
    with pytest.raises(Stopped, match="algo-2 was stopped"), ending_in_order():
        raise Stopped("algo-2 was stopped by SIGTERM")


@pytest.mark.process
@pytest.mark.parametrize("name", ["xgboost", "random_forest"])
def test_what_a_bundled_script_declares_is_known_without_its_library(name: str) -> None:
    path = os.fspath(REPOSITORY / "train_scripts" / f"{name}_train.py")
    assert _loaded(f"import runpy\ndeclared = runpy.run_path({path!r})", "xgboost", "sklearn", "torch") == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("room", "unused"),
    [
        ("xgboost", ("sklearn", "pandas", "xgboost.sklearn")),
        pytest.param("sklearn", ("pandas", "rich"), marks=pytest.mark.long),
    ],
)
def test_a_session_imports_nothing_that_it_does_not_use(room: str, unused: tuple[str, ...]) -> None:
    assert _loaded(f"from trainbox.{room}.entry import load\nload()", room, *unused, "matplotlib", "torch") == [room]


@pytest.mark.process
@pytest.mark.parametrize("room", ["xgboost", pytest.param("sklearn", marks=pytest.mark.long)])
def test_a_library_that_the_script_has_imported_stays_whole(room: str) -> None:
    first = f"import {room}, pandas" + (", sklearn.ensemble" if room == "sklearn" else "")
    load = f"from trainbox.{room}.entry import load\nload()"
    use = "assert xgboost.XGBClassifier()" if room == "xgboost" else "assert sklearn.utils.fixes.pd is pandas"
    assert _loaded(f"{first}\n{load}\n{use}", room) == [room]


@pytest.mark.long
@pytest.mark.process
def test_a_forest_is_packed_without_torch_also_where_the_script_imports_scikit_learn() -> None:
    program = """
import sklearn.ensemble
from trainbox.sklearn.entry import load
load()
from trainbox.sklearn.forests.packing import FORESTS, pack, unpack
for kind in FORESTS:
    forest = kind(n_estimators=1).fit([[0.0], [1.0]], [0, 1])
    assert type(unpack(pack(forest), kind, features=1, source="here")) is kind
"""
    assert _loaded(program, "sklearn", "torch") == ["sklearn"]


@pytest.mark.process
def test_xgboost_trains_without_what_is_kept_out_and_finds_it_later() -> None:
    program = """
from trainbox.xgboost.entry import load
load()
import numpy, xgboost
rows = xgboost.QuantileDMatrix(numpy.eye(8), numpy.arange(8))
assert xgboost.train({"max_depth": 2}, rows, 1).num_boosted_rounds() == 1
import sklearn.model_selection
"""
    assert _loaded(program, "xgboost", "sklearn") == ["xgboost", "sklearn"]


def _loaded(program: str, *names: str) -> list[str]:
    """Which of these modules a program has imported."""
    code = f"{program}\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules), sep=',')"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stderr
    return [name for name in answer.stdout.strip().split(",") if name]
