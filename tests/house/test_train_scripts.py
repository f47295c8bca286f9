"""A bundled script can be copied: it imports public names as a script of the user's own would, and is read at once."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tools import api_reference
from trainbox.supervisor.program.choice import bundled_scripts

#: What a script may import of ours: the toolkit, and what there is for its algorithm.
FACADES = ("trainbox.sklearn", "trainbox.torch", "trainbox.xgboost")
MOST_LINES = 120
SCRIPTS = sorted(bundled_scripts().values())


def names_of(path: Path) -> Iterator[tuple[str, str]]:
    """The module and the name of everything of ours that a script uses."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "trainbox")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trainbox":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainbox":
            yield "trainbox", node.attr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_bundled_script_imports_public_names_of_one_facade(path: Path) -> None:
    used = {*names_of(path)} - {("trainbox", "")}
    modules = {module for module, _ in used}
    assert len(modules & {*FACADES}) == 1
    assert modules <= {"trainbox", *FACADES}
    private = {(module, name) for module, name in used if name not in importlib.import_module(module).__all__}
    assert not private


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_bundled_script_is_short_and_imports_as_any_script_does(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    tree = ast.parse(text)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    first = tree.body[1 : 1 + len(imports)]  # behind the docstring, and one after the other
    assert imports == first
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [name for name in attributes if name.startswith("_")]


@pytest.mark.parametrize("name", FACADES)
def test_the_names_of_a_facade_are_sorted_and_each_says_what_it_is_for(name: str) -> None:
    facade = importlib.import_module(name)
    assert facade.__all__ == sorted(facade.__all__)
    assert {*facade.__all__} <= {*dir(facade)}
    for public in facade.__all__:
        value = getattr(facade, public)
        assert not isinstance(value, ModuleType), f"{name}.{public} is a module: it hides the name"
        assert inspect.getdoc(value), f"{name}.{public} has no docstring"
        for method, function in inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else ():
            of_ours = function.__module__.startswith("trainbox.") and not method.startswith("_")
            assert not of_ours or inspect.getdoc(function), f"{name}.{public}.{method} has no docstring"


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_has_no_other_names(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'no_such_name'"):
        importlib.import_module(name).no_such_name  # noqa: B018 - to ask is what raises


@pytest.mark.parametrize("name", FACADES)
def test_the_api_reference_has_every_name_of_a_facade_but_its_hyperparameters(name: str) -> None:
    listed = {module: {*names} for module, names, _ in api_reference.MODULES}[name]
    hyperparameters = {"EstimatorParams", "NetworkParams", "XGBoostParams"}  # the settings page has their tables
    assert listed == {*importlib.import_module(name).__all__} - hyperparameters
