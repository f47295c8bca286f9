"""Pure: which statements of a script declare its hyperparameters and metrics, so that nothing else of it need run.

A script whose training stands below `if __name__ == "__main__":` is imported as it is. Of one without that guard only
the statements run that `Params` and the metrics are made of: classes, functions, imports, and assignments whose calls
are known to do nothing else. What is needed and may train is an error that names its line: it does not run.
"""

import ast
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from trainbox.errors import RunError
from trainbox.local.scripts.harmless import (
    ModuleNames,
    bound,
    changed,
    is_harmless,
    makes_metrics,
    may_train,
    read,
)

_HINT = 'put what runs the training below `if __name__ == "__main__":`'
#: Modules of a script that are looked at.
_MOST_MODULES = 100


class Reading(msgspec.Struct, frozen=True):
    """How a script is read."""

    #: Whether all of it runs, as in any import.
    whole: bool
    #: The statements that run, where it is not.
    body: tuple[ast.stmt, ...] = ()


def parse(path: Path) -> ast.Module:
    """Return the statements of a file; none where it is no Python, which Python itself says when it is imported.

    Raises:
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python gives them, too
            return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def plan_reading(tree: ast.Module, name: str, *, metrics: bool) -> Reading:
    """Decide how the declarations of a script are read.

    Args:
        tree: The script.
        name: As errors call it.
        metrics: Whether its metrics are wanted, too, or `Params` alone.

    Raises:
        RunError: They need what may train.
    """
    names = ModuleNames(tree.body)
    body = [node for node in tree.body if not is_guard(node)]
    if all(is_harmless(node, names) for node in body):
        return Reading(whole=True)
    has_guard = len(body) < len(tree.body)
    if has_guard and not any(may_train(node, names) for node in body):
        return Reading(whole=True)
    return Reading(whole=False, body=_slice(body, names, name, metrics=metrics))


def find_training_module(body: Sequence[ast.stmt], directory: Path) -> str:
    """Return the place, `module.py:3`, where a module beside the script would train when it is imported; else nothing.

    Args:
        body: The statements of the script that run.
        directory: Where it lies.
    """
    queue = [*_modules(body, directory)]
    for path in queue:  # it grows meanwhile
        try:
            tree = parse(path)
        except OSError:  # which Python itself says when it is imported
            continue
        names, outside = ModuleNames(tree.body), [node for node in tree.body if not is_guard(node)]
        training = next((node for node in outside if may_train(node, names)), None)
        if training is not None:
            return f"{path.relative_to(directory)}:{training.lineno}"
        found = (other for other in _modules(outside, directory) if other not in queue)
        queue += [*dict.fromkeys(found)][: _MOST_MODULES - len(queue)]
    return ""


def _modules(body: Sequence[ast.stmt], directory: Path) -> Iterator[Path]:
    """The files beside the script that statements import."""
    for node in (inner for statement in body for inner in ast.walk(statement)):
        named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in named:
            path = directory.joinpath(*name.split("."))
            yield from (file for file in (path.with_name(f"{path.name}.py"), path / "__init__.py") if file.is_file())


def is_guard(node: ast.stmt) -> bool:
    """Whether a statement runs only in the program itself, not where it is imported."""
    if not isinstance(node, ast.If):
        return False
    tests = node.test.values if isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.And) else [node.test]
    return any(map(_compares_name, tests)) and not node.orelse


def _compares_name(test: ast.expr) -> bool:
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        return False
    sides = [test.left, *test.comparators]
    says_main = any(isinstance(side, ast.Constant) and side.value == "__main__" for side in sides)
    return says_main and any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)


def _slice(body: Sequence[ast.stmt], names: ModuleNames, name: str, *, metrics: bool) -> tuple[ast.stmt, ...]:
    """The statements that `Params` and the metrics need, in their order.

    What is read when a statement runs is needed; what only a function of it reads, when it is called, is there where it
    can be.
    """
    kept = {at for at, node in enumerate(body) if _is_wanted(node, names, metrics=metrics)}
    queue = sorted(kept)
    for at in queue:  # it grows meanwhile
        node = body[at]
        _require_harmless(node, names, name)
        needed = {*read(node, later=False)}
        perhaps = {*read(node, later=True)} - needed
        for other, statement in enumerate(body):
            gives = {*bound(statement), *(changed(statement) if is_harmless(statement, names) else ())}
            is_soft = not needed & gives
            if other in kept or not (needed | perhaps) & gives or (is_soft and not is_harmless(statement, names)):
                continue
            kept.add(other)
            queue.append(other)
    return tuple(body[at] for at in sorted(kept))


def _is_wanted(node: ast.stmt, names: ModuleNames, *, metrics: bool) -> bool:
    always = isinstance(node, ast.ImportFrom) and (node.module == "__future__" or node.names[0].name == "*")
    if always or {"Params", *(["metrics"] if metrics else [])} & {*bound(node)}:
        return True
    return metrics and is_harmless(node, names) and makes_metrics(node, names)


def _require_harmless(node: ast.stmt, names: ModuleNames, name: str) -> None:
    if not is_harmless(node, names):
        line = ast.unparse(node).partition("\n")[0]
        shown = line if len(line) <= 60 else f"{line[:60]}…"  # noqa: PLR2004 - as much as a message can take
        raise RunError(
            f"'{name}' has no main guard, and its declarations need line {node.lineno}, which may train: {shown}",
            hint=_HINT,
        )
