"""What runs when an exported program (`.pt2`) is loaded: pickles, machine code, and expressions that are evaluated.

`torch.export.load` unpickles whatever its archive marks as a pickle, loads the libraries of AOTInductor, and has SymPy
and Python evaluate sizes and guards that are written as texts. What `torch.export.save` writes of plain tensors has
none of it.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath

#: A number, a name, a name in quotes, an operator: no attribute, no other text, no assignment but of arguments.
_EXPRESSION = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*|[0-9]+(?:\.[0-9]+)?|'[a-z]+[0-9]*'|[-+*/%(),<>=!&|~ ])*")
_CALLED = re.compile(r"([A-Za-z][A-Za-z0-9]*)\s*\(")
#: What such an expression may call: SymPy's numbers and relations, and the functions that PyTorch adds.
_CALLS = frozenset(
    {
        *("Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Float", "FloatTrueDiv", "FloorDiv"),
        *("FloorToInt", "Ge", "Gt", "Identity", "IntTrueDiv", "Integer", "Le", "Lt", "Max", "Min", "Mod"),
        *("ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise", "Pow", "PowByNatural", "PythonMod", "Rational"),
        *("RoundToInt", "Symbol", "ToFloat", "TruncToInt", "Where", "ceiling", "floor"),
    }
)
_PICKLED = ("custom_obj", "opaque_obj")
_DAMAGED = (OSError, ValueError, NotImplementedError, RecursionError, zipfile.BadZipFile, zlib.error)


def find_code(content: bytes) -> str:
    """Return what an exported program holds that would run when it is loaded; nothing where it holds none.

    Args:
        content: The archive; one that cannot be read is left to PyTorch.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return next(_code(archive), "")
    except _DAMAGED:
        return "what is no archive of torch.export"


def _code(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if not any(name.endswith("archive_format") for name in names):
        yield "an archive of an older torch.export, whose tensors are pickles"
    for name in names:
        path = PurePosixPath(name)
        if "aotinductor" in path.parts or path.suffix in {".so", ".o", ".cubin", ".cpp"}:
            yield f"machine code ({path.name})"
        if path.suffix == ".pt" and path.parent.name in {"weights", "constants"}:
            yield f"a pickle ({path.name})"
        if path.suffix == ".json":
            yield from _code_of(json.loads(archive.read(name)), path.name)


def _code_of(document: object, name: str) -> Iterator[str]:
    rest = [document]
    while rest:
        match rest.pop():
            case dict() as entry:
                if entry.get("use_pickle") or str(entry.get("path_name", "")).startswith(_PICKLED):
                    yield f"a pickle ({entry.get('path_name')})"
                for expression in (entry.get("expr_str", ""), *(entry.get("guards_code") or ())):
                    if not isinstance(expression, str) or not is_plain(expression):
                        yield f"an expression that is no size ({str(expression)[:40]!r} in {name})"
                rest += entry.values()
            case list() as entries:
                rest += entries


def is_plain(expression: str) -> bool:
    """Return whether an expression is made of numbers, names, and calls of what computes sizes.

    Args:
        expression: As SymPy or Python would evaluate it.
    """
    return bool(_EXPRESSION.fullmatch(expression)) and {*_CALLED.findall(expression)} <= _CALLS
