"""Ranks have torch imported before the script begins: a variable that comes too late is named, or none is imported."""

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import pytest

from tests.support.trees import Tree
from trainbox.launcher.ranks.preload import FirstImport, changed, remember

SCRIPT = """
import importlib.util, os, sys
loaded = "torch" in sys.modules
assert importlib.util.find_spec("torch").origin.endswith("torch/__init__.py")  # as libraries look for it
os.environ["TORCH_LOGS"] = "+dynamo"
import torch
from torch.nn import functional
from trainbox.torch import session
print("LOADED", loaded, torch.__spec__.name, sys.modules["torch"] is torch, os.getppid(), flush=True)
os.environ["OMP_DISPLAY_ENV"] = "TRUE"
with session() as run:
    total = run.total(torch.ones(1)).item()
    print("TOTAL", total, flush=True)
    if "BREAK" in os.environ: raise ValueError("broken")
"""


@pytest.mark.cluster
@pytest.mark.parametrize("preload", ["on", pytest.param("off", marks=pytest.mark.long)])
def test_a_variable_that_comes_too_late_is_named_once_unless_nothing_is_imported(preload: str, tmp_path: Path) -> None:
    with Tree(tmp_path / "ml").hosts("localhost").program(SCRIPT) as tree:
        tree.hyperparameters(processes_per_host=2, trainbox_launcher="torchrun", trainbox_preload=preload)
        run = tree.finish(tree.start())
    assert run.code == 0, run.log
    # To the script it looks as it would in an interpreter of its own.
    assert run.stdout.count(b"LOADED False torch True") == 2
    assert run.stdout.count(b"TOTAL 2.0") == 2
    late = 1 if preload == "on" else 0
    assert run.log.count("WARNING: TORCH_LOGS was changed by the script, but torch was imported before it") == late
    assert run.log.count("WARNING: OMP_DISPLAY_ENV was changed by the script") == late
    assert run.log.count("trainbox_preload=off") == 2 * late


@pytest.mark.cluster
@pytest.mark.long
def test_a_rank_of_its_own_interpreter_fails_as_any_other(tmp_path: Path) -> None:
    with Tree(tmp_path / "ml").hosts("localhost").program(SCRIPT) as tree:
        tree.hyperparameters(
            processes_per_host=2, trainbox_launcher="torchrun", trainbox_preload="off", trainbox_max_restarts=0
        )
        run = tree.finish(tree.start({"BREAK": "1"}))
    assert run.code == 1, run.log
    assert "ValueError: broken" in str(run.failure)


def test_only_what_is_read_at_an_import_is_compared() -> None:
    env = {"TORCH_LOGS": "a", "OMP_NUM_THREADS": "1", "PATH": "/bin"}
    before = remember(env)
    assert changed({**env, **before}) == ()
    assert changed({**env, **before, "PATH": "/usr/bin", "TORCH_NCCL_BLOCKING_WAIT": "1", "TORCHELASTIC_X": "1"}) == ()
    assert changed({**before, "TORCH_LOGS": "b", "KMP_AFFINITY": "none"}) == (
        "KMP_AFFINITY",
        "OMP_NUM_THREADS",
        "TORCH_LOGS",
    )
    assert changed({"TORCH_LOGS": "b"}) == ()  # nothing was imported before


def test_a_module_is_hidden_until_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("imported_long_ago")
    module.__spec__ = importlib.machinery.ModuleSpec(
        "imported_long_ago", None, origin="/there/__init__.py", is_package=True
    )
    module.__spec__.submodule_search_locations = ["/there"]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    told: list[str] = []
    finders = list(sys.meta_path)
    FirstImport(module, lambda: told.append("then"))
    assert module.__name__ not in sys.modules
    importlib.import_module("json")
    # As libraries look whether it is installed; it must not be run a second time when it is imported after that.
    for _ in range(2):
        found = importlib.util.find_spec("imported_long_ago")
        assert found is not None
        assert (found.origin, found.submodule_search_locations) == ("/there/__init__.py", ["/there"])
    assert not told
    spec = module.__spec__
    assert importlib.import_module("imported_long_ago") is module
    assert importlib.import_module("imported_long_ago") is module
    assert told == ["then"]
    assert module.__spec__ is spec
    assert sys.meta_path == finders
