"""The code of several models in one process: each sees its own modules, and nobody sees them afterwards."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trainbox.serving.hooks.namespace import Namespace


def write(directory: Path, name: str) -> None:
    """The code of a model: a module, a package that imports it, and what only a request imports."""
    (directory / "trainbox_test_package").mkdir(parents=True)
    (directory / "trainbox_test_helper.py").write_text(f"NAME = {name!r}\n")
    (directory / "trainbox_test_package" / "__init__.py").write_text("from trainbox_test_helper import NAME\n")
    (directory / "trainbox_test_later.py").write_text(f"NAME = 'later {name}'\n")


def name_in(module: str) -> object:
    return importlib.import_module(module).NAME


def test_two_models_have_modules_of_the_same_name_and_leave_no_trace(tmp_path: Path) -> None:
    before, modules = list(sys.path), set(sys.modules)
    spaces = {name: Namespace() for name in ("one", "two")}
    for name, space in spaces.items():
        write(tmp_path / name, name)
        with space.active():
            sys.path.insert(0, str(tmp_path / name))
            assert name_in("trainbox_test_package") == name
        assert (sys.path, set(sys.modules)) == (before, modules)
    for name in ("one", "two", "one"):
        with spaces[name].active():
            assert name_in("trainbox_test_helper") == name
            assert name_in("trainbox_test_later") == f"later {name}"
            assert sys.path == [str(tmp_path / name), *before]
        assert (sys.path, set(sys.modules)) == (before, modules)


def test_a_module_is_imported_once(tmp_path: Path) -> None:
    write(tmp_path / "one", "one")
    space = Namespace()
    found: list[ModuleType] = []
    for _ in range(3):
        with space.active():
            if not found:
                sys.path.insert(0, str(tmp_path / "one"))
            found.append(importlib.import_module("trainbox_test_package"))
    assert found[0] is found[1] is found[2]


def test_a_module_of_a_model_hides_one_that_is_there_only_while_the_model_runs(tmp_path: Path) -> None:
    write(tmp_path / "one", "one")
    space = Namespace()
    with space.active():
        sys.path.insert(0, str(tmp_path / "one"))
        own = importlib.import_module("trainbox_test_helper")
    sys.modules["trainbox_test_helper"] = outside = ModuleType("trainbox_test_helper")
    try:
        with pytest.raises(ModuleNotFoundError), space.active():
            importlib.import_module("trainbox_test_none" if sys.modules["trainbox_test_helper"] is own else "sys")
        assert sys.modules["trainbox_test_helper"] is outside
    finally:
        del sys.modules["trainbox_test_helper"]
