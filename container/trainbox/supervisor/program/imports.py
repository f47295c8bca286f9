"""Whether a program imports a module, read from its source: nothing is run, and nothing outside of the code is read."""

import ast
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

#: More than a training script has of its own; what lies beyond is not looked at.
MOST_FILES = 100
MOST_BYTES = 2_000_000


class _Import(msgspec.Struct, frozen=True):
    """A module that a file names; `base` is where a relative name begins."""

    name: str
    base: Path | None = None


def find_import(entry: Path, directory: Path, *wanted: str) -> str:
    """Return the file of a program that imports one of some modules: itself, or a module of its code at the top level.

    Args:
        entry: The program.
        directory: The root of the code.
        wanted: The full names of the modules.

    Returns:
        The name of the file within the directory; empty where there is none, or where that cannot be told.
    """
    root = directory.resolve()
    places = tuple(dict.fromkeys((entry.parent, directory, directory / "src")))
    queue, left = [entry], MOST_BYTES
    for path in queue:  # it grows meanwhile
        text = _read(path, root, left)
        left -= len(text)
        statements = _parse(text)
        if any(_is_within(one, wanted) for one in _imports(_statements(statements, functions=True), path)):
            return str(path.relative_to(directory))
        found = (file for one in _imports(_statements(statements), path) for file in _files(one, places))
        queue += itertools.islice((file for file in dict.fromkeys(found) if file not in queue), MOST_FILES - len(queue))
    return ""


def _read(path: Path, root: Path, most: int) -> bytes:
    """Return a file of the code; nothing where it is none, or too large."""
    try:
        if path.resolve().is_relative_to(root) and path.stat().st_size <= most:
            return path.read_bytes()
    except (OSError, RuntimeError):  # gone meanwhile, or no permission
        pass
    return b""


def _parse(text: bytes) -> list[ast.stmt]:
    """Return the statements of a file; none where it is no Python, which Python itself will say when it runs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python gives them, too
            return ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _statements(body: list[ast.stmt], *, functions: bool = False) -> Iterator[ast.AST]:
    """All statements that run when a file is imported, or its functions are called; not those for type checkers."""
    rest: list[ast.AST] = [*body]
    while rest:
        node = rest.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(node, ast.If) and _is_for_type_checkers(node.test):
            rest += node.orelse
            continue
        yield node
        inner = ast.iter_child_nodes(node)
        rest += [child for child in inner if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)]


def _is_for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _imports(statements: Iterator[ast.AST], path: Path) -> Iterator[_Import]:
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level <= len(path.parents):
            base = path.parents[node.level - 1] if node.level else None
            module = [node.module] if node.module else []
            # What is imported from a package may be a module of it.
            yield from (_Import(".".join([*module, alias.name]), base) for alias in node.names)


def _is_within(one: _Import, wanted: Sequence[str]) -> bool:
    return one.base is None and any(one.name == name or one.name.startswith(f"{name}.") for name in wanted)


def _files(one: _Import, places: Sequence[Path]) -> Iterator[Path]:
    """The files that an import runs, as far as they are of the code: packages on the way, and the module."""
    parts = one.name.split(".")
    for place in places if one.base is None else [one.base]:
        for count in range(1, len(parts) + 1):
            path = place.joinpath(*parts[:count])
            files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
            yield from (file for file in files if os.path.isfile(file))  # noqa: PTH113 - a name too long names none
