"""Where the user's module is, and which hooks it defines: found by reading it, before anything of it runs."""

import ast
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from trainbox import files
from trainbox.contract.hosting import DEFAULT_PROGRAM, Hosting
from trainbox.errors import ProgramError
from trainbox.files import permission_hint

#: What the user's module may define, by the names of SageMaker's inference toolkits.
HOOKS = (
    "model_fn",
    "input_fn",
    "predict_fn",
    "output_fn",
    "transform_fn",
    "pre_model_fn",
    "model_warmup_fn",
    "execution_parameters_fn",
)
_MOST_PROGRAM_BYTES = 16 * 2**20
#: No such file, or something else in its place: a directory, a link, which is not followed.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)


class Module(msgspec.Struct, frozen=True):
    """The user's module, and the hooks that it defines."""

    path: Path
    hooks: tuple[str, ...]
    #: False for `from … import *`, which may define any of them: `hooks` has all then.
    is_certain: bool = True


def module_places(hosting: Hosting) -> Iterator[Path]:
    """Yield where the user's module may be; what `s3://…` names has been unpacked to the code directory.

    Args:
        hosting: What SageMaker says.
    """
    program, directory = hosting.program or DEFAULT_PROGRAM, hosting.submit_directory
    model_dir, code_dir = hosting.model_dir, hosting.layout.code_dir
    given = [] if not directory or directory.startswith("s3://") else [Path(directory.removeprefix("file://"))]
    # The SDK v3 mounts `code` at the model's own place.
    for place in (*given, model_dir / "code", code_dir, model_dir):
        yield place / program
        if hosting.program and not program.endswith(".py"):
            yield place / f"{program}.py"


def find_module(places: Sequence[Path]) -> Module | None:
    """Return the first module that is there, with its hooks; it is read, and not imported.

    Args:
        places: Where it may be.

    Raises:
        ProgramError: It cannot be read, or is no Python.
    """
    for path in places:
        try:
            content = files.read_regular(path, _MOST_PROGRAM_BYTES)
        except OSError as error:
            if error.errno in _ABSENT:
                continue
            raise ProgramError(
                f"{path} cannot be read: {error.strerror}", hint=permission_hint(error) or "copy it again"
            ) from error
        try:
            names = _defined(ast.parse(content))
            hooks = tuple(name for name in HOOKS if name in names or "*" in names)
            return Module(path, hooks, is_certain="*" not in names)
        except (SyntaxError, ValueError) as error:
            where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise ProgramError(f"{path} is not a Python module: {error}{where}", hint="correct the file") from error
    return None


def _defined(module: ast.Module) -> set[str]:
    """Return the names that a module defines at its top; `*` for `from … import *`."""
    names: set[str] = set()
    rest: list[ast.AST] = list(module.body)
    while rest:
        node = rest.pop()
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update(alias.asname or alias.name for alias in aliases)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case _:
                rest += ast.iter_child_nodes(node)
    return names


def check_hooks(path: Path, hooks: Sequence[str]) -> None:
    """Refuse `transform_fn` beside what it stands for.

    Raises:
        ProgramError: The module defines both.
    """
    instead = [name for name in ("input_fn", "predict_fn", "output_fn") if name in hooks]
    if "transform_fn" in hooks and instead:
        raise ProgramError(
            f"{path} defines transform_fn and also {', '.join(instead)}, which would never be called",
            hint="keep either transform_fn, or input_fn, predict_fn and output_fn",
        )
