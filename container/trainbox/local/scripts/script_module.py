"""What a training script declares, `Params` and its metrics, without training."""

import ast
import contextlib
import dataclasses
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

import msgspec

from trainbox.contract import params
from trainbox.errors import RunError, TrainboxError
from trainbox.local.scripts.declarations import Reading, find_training_module, parse, plan_reading
from trainbox.metrics import Metric
from trainbox.supervisor.program.choice import find_bundled

_PARAMS_EXAMPLE = "write `class Params(msgspec.Struct, frozen=True, kw_only=True)` at the top level of the script"


def find_script(name: str) -> Path:
    """The file of that path, or else the bundled script of that name.

    Raises:
        RunError: It is a path, and there is no such file.
        ProgramError: It is a name, and no bundled script has it.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.name != name:
        raise RunError(f"there is no script '{name}'", hint="give the path of a file, or the name of a bundled script")
    return find_bundled(name)


def load_script(path: Path, *, metrics: bool = True) -> ModuleType:
    """The module that a script is, under another name than `__main__`: all of it, or what it declares.

    What it prints meanwhile goes to stderr, because stdout holds the result of the verb. See `declarations` for what
    runs of a script that has no main guard.

    Args:
        path: The script.
        metrics: Whether its metrics are wanted, or its `Params` alone.

    Raises:
        RunError: It is not a Python script, it cannot be imported, or it would train meanwhile.
    """
    if path.suffix != ".py":
        raise RunError(f"'{path}' is not a Python script", hint="only a Python script (*.py) can declare anything")
    name = f"trainbox_script_{path.stem}"
    loader = _Declarations(name, str(path), _plan(path, metrics=metrics))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise RunError(f"'{path}' cannot be imported: Python knows no loader for it")
    module = importlib.util.module_from_spec(spec)
    # It stays there: dataclasses and msgspec look the names in annotations up in `sys.modules[cls.__module__]`.
    sys.modules[name] = module
    try:
        with _as_program(path), contextlib.redirect_stdout(sys.stderr):
            loader.exec_module(module)
    except TrainboxError:
        raise
    except SystemExit as error:
        raise RunError(
            f"'{path}' ended with code {error.code!r} while it was imported",
            hint='put what runs the training below `if __name__ == "__main__":`',
        ) from error
    except Exception as error:
        raise RunError(
            f"'{path}' cannot be imported: {type(error).__name__}: {error}",
            hint=_import_hint(error),
        ) from error
    return module


def _plan(path: Path, *, metrics: bool) -> Reading:
    try:
        tree = parse(path)
    except OSError as error:
        raise RunError(f"'{path}' cannot be read: {error.strerror}") from error
    reading = plan_reading(tree, str(path), metrics=metrics)
    place = find_training_module(tree.body if reading.whole else reading.body, path.resolve().parent)
    if place:
        raise RunError(
            f"'{path}' imports {place}, which would train while it is imported",
            hint='put what runs the training there below `if __name__ == "__main__":`',
        )
    return reading


class _Declarations(importlib.machinery.SourceFileLoader):
    """Python's own loader of scripts; of one without a main guard it runs only some of the statements.

    Args:
        name: Of the module.
        path: Of the script.
        reading: Which statements run.
    """

    def __init__(self, name: str, path: str, reading: Reading) -> None:
        super().__init__(name, path)
        self._reading = reading

    def path_stats(self, path: str) -> Mapping[str, object]:
        """None: nothing compiled is read or left behind, as with any main program."""
        raise OSError(path)

    def source_to_code(  # type: ignore[override]  # of a class whose base has it as a static method
        self,
        data: Any,  # noqa: ANN401 - as Python's own
        path: Any,  # noqa: ANN401
        *,
        _optimize: int = -1,
    ) -> CodeType:
        """What Python makes of the statements that run."""
        if not self._reading.whole:
            data = ast.Module(body=[*self._reading.body], type_ignores=[])
        code: CodeType = super().source_to_code(data, path)
        return code


def find_params(module: ModuleType) -> type:
    """The `Params` that a script declares.

    Raises:
        RunError: There is none, or it is neither a msgspec.Struct nor a dataclass.
    """
    found = getattr(module, "Params", None)
    if found is None:
        raise RunError(f"'{module.__file__}' declares no hyperparameters: it has no Params", hint=_PARAMS_EXAMPLE)
    if isinstance(found, type) and (issubclass(found, msgspec.Struct) or dataclasses.is_dataclass(found)):
        return found
    raise RunError(f"Params in '{module.__file__}' is neither a msgspec.Struct nor a dataclass", hint=_PARAMS_EXAMPLE)


def find_metrics(module: ModuleType, values: Mapping[str, object]) -> tuple[Metric, ...]:
    """The metrics a script logs, each once, in the order declared.

    If the script has a function `metrics(params)`, it alone says which, as they may depend on the hyperparameters;
    otherwise they are the metrics, and the lists and tuples of metrics, at the top level of the script.

    Raises:
        HyperparameterError: The values are not what the script's Params asks for.
        RunError: The function returns something else.
    """
    params_type = find_params(module) if values or callable(getattr(module, "metrics", None)) else None
    program = Path(str(module.__file__)).name
    # Which metrics there are seldom hangs on what has no default, such as the number of rounds.
    filled = params.parse(params_type, values, program=program, partial=True) if params_type else None
    function: Callable[[object], object] | None = getattr(module, "metrics", None)
    if not callable(function):
        return tuple(dict.fromkeys(_metrics_within(vars(module).values())))
    try:
        returned = function(filled)
    except Exception as error:
        raise RunError(
            f"metrics(params) in '{module.__file__}' failed: {type(error).__name__}: {error}",
            hint="it may use what the script declares, and nothing that training makes",
        ) from error
    if not _is_metrics(returned):
        raise RunError(f"metrics(params) in '{module.__file__}' returned {returned!r}, expected a list of Metric")
    return tuple(dict.fromkeys(cast("Sequence[Metric]", returned)))


def _metrics_within(values: Iterable[object]) -> Iterator[Metric]:
    for value in values:
        if isinstance(value, Metric):
            yield value
        elif _is_metrics(value):
            yield from cast("Sequence[Metric]", value)


def _is_metrics(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Metric) for item in value)


def _import_hint(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "install here what the script needs, or run this where it is installed"
    return "its top level is run to read what it declares; what follows `if __name__ == ...` is not"


@contextlib.contextmanager
def _as_program(path: Path) -> Iterator[None]:
    """What Python sets when it runs a script: its directory first on the path, itself in argv."""
    before = sys.path[:], sys.argv[:]
    sys.path.insert(0, str(path.resolve().parent))
    sys.argv[:] = [str(path)]
    try:
        yield
    finally:
        sys.path[:], sys.argv[:] = before
